"""Each container is counted once, however often it is noticed."""

from tests.engine_log import EngineLog

from runner.adapters.docker.census import Census


def test_counts_are_of_containers_and_not_of_news() -> None:
    log = EngineLog()
    census = Census(log)
    census.appeared("a")
    census.appeared("a")
    census.appeared("b")
    census.gone("a")
    census.gone("a")
    census.gone("never")
    assert (log.created, log.removed) == (2, 1)
    assert census.living() == {"b"}
