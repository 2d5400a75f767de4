"""`runner serve` that gives up sooner: `python impatient.py serve`. What takes minutes otherwise takes seconds."""

from datetime import timedelta
from typing import Any

from runner import executor, tenure
from runner.adapters.docker import container, health, sandbox
from runner.adapters.docker.client import TIME_LIMITS, Operation
from runner.cli import main

SHORT = {
    Operation.PING: 1,
    Operation.INSPECT: 2,
    Operation.CREATE: 10,
    Operation.START: 20,
    Operation.KILL: 1,
    Operation.WAIT: 5,
    Operation.DELETE: 2,
}
KILL_BUDGET = timedelta(seconds=2)
BEGIN_LIMIT = 10.0
GOOD_FOR = timedelta(seconds=9)

if __name__ == "__main__":
    limits: Any = TIME_LIMITS
    limits.update({operation: timedelta(seconds=seconds) for operation, seconds in SHORT.items()})
    run: Any = executor.Run.__init__
    run.__kwdefaults__["kill_budget"] = KILL_BUDGET
    tenure._RESISTS_AFTER = 1.0
    tenure._REMOVED_WITHIN = 1.0
    container._BEGIN_LIMIT = BEGIN_LIMIT
    sandbox.GOOD_FOR = GOOD_FOR
    health._EVERY = 1.0
    main()
