"""Private services for development and tests: a broker and an engine that disturb no other on the machine.

`python -m scripts.devservices start|stop|status|env` runs one pair under `.dev/`; tests make more with `Broker` and
`Engine`, each in a folder of its own.
"""

from scripts.devservices.broker import Broker
from scripts.devservices.engine import Engine
from scripts.devservices.process import ServiceError

__all__ = ["Broker", "Engine", "ServiceError"]
