"""What the kernel counts by user runs out for all jobs of that user at once, unless each is a user of its own."""

import pytest
from tests.hostile.arena import check_neighbour
from tests.hostile.attack import attack
from tests.hostile.conftest import OpenArena

pytestmark = [pytest.mark.engine, pytest.mark.broker]

QUOTAS = ("inotify instances", "queued signals", "sockets on their way", "pipe buffers", "locked shared memory")
ENOUGH = [f"{quota}: 20, then enough" for quota in QUOTAS]
ROOM = {"memory": "128m", "timeout": "2m"}


async def test_a_job_that_is_a_user_of_its_own_leaves_its_neighbours_their_quotas(
    arena_at: OpenArena, *, warm: bool
) -> None:
    async with arena_at(warm=warm, engine__uids="200000-265535") as arena:
        greedy = await arena.submit(attack("take_quotas", "60"), limits=ROOM)
        await greedy.wrote("taken\n")
        taken = greedy.text().splitlines()[: len(QUOTAS)]
        assert [line.split(":")[0] for line in taken] == list(QUOTAS)
        assert not any("enough" in line for line in taken), taken
        calm = await arena.run(attack("count_quotas", "20"), limits=ROOM)
        assert calm.text().splitlines() == ENOUGH
        check_neighbour(await (await arena.neighbour()).finished())
        await arena.acme.cancel(greedy)
        await greedy.finished()


async def test_a_job_of_another_user_is_nobody_all_the_same(arena_at: OpenArena, *, warm: bool) -> None:
    script = "id -u; id -g; stat -c %u /work; touch /work/a /tmp/a /dev/shm/a && echo {} >/job/output; echo $?"
    async with arena_at(
        warm=warm, engine__uids="200000-265535", stacks={"hostile-named": 'user = "1000:100"\n'}
    ) as arena:
        own = await arena.run(["sh", "-c", script])
        uid, gid, owner, status = own.text().split()
        assert 200000 <= int(uid) <= 265535
        assert (gid, owner, status) == ("65534", uid, "0")
        own.ended("succeeded", blame="none", exit_code=0, output={})
        named = await arena.run(["sh", "-c", script], stack="hostile-named")
        assert named.text().split() == ["1000", "100", "1000", "0"]
