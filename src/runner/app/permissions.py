"""What a worker and a tenant may do in the broker, as the operator's commands."""

import re
import shlex
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from runner.adapters.amqp.names import Names
from runner.settings import Settings

_NOTHING = "^$"
_ANYTHING = "^.*$"
_WORD = "[a-z0-9][a-z0-9_-]{0,39}"
_ID = "[A-Za-z0-9_-]{1,64}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicPermission:
    """Which routing keys a user may publish to a topic exchange, and bind from it."""

    exchange: str
    write: str
    read: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Regular expressions, each anchored, since the broker looks for them anywhere in a name.

    A topic exchange without a `TopicPermission` is open to every routing key, so that each one which the user may
    write or read at all has to stand in `topics`, unless all of its keys are meant.
    """

    configure: str
    write: str
    read: str
    topics: tuple[TopicPermission, ...]

    def commands(self, user: str, vhost: str) -> list[str]:
        """What an operator types."""
        base = ["rabbitmqctl", "set_permissions", "-p", vhost, user, self.configure, self.write, self.read]
        topics = [
            ["rabbitmqctl", "set_topic_permissions", "-p", vhost, user, topic.exchange, topic.write, topic.read]
            for topic in self.topics
        ]
        return [shlex.join(command) for command in (base, *topics)]


def tenant_permissions(namespace: str, tenant: str) -> Permissions:
    """Submit, cancel and find jobs as this tenant, and hear of its own; nothing else.

    The only queues that it can make are those that the broker names, such as a client's.
    """
    names, ns = Names(namespace), re.escape(namespace)
    heard = f"^{tenant}\\..+$"
    return Permissions(
        configure="^amq\\.gen-.+$",
        write=f"^({ns}|{ns}\\.control|amq\\.gen-.+)$",
        read=f"^({ns}\\.(events|logs|reply)|amq\\.gen-.+)$",
        topics=(
            TopicPermission(exchange=names.submit, write=f"^{_WORD}\\.(high|normal|low)\\.{tenant}$", read=_NOTHING),
            TopicPermission(exchange=names.control, write=f"^job\\.{tenant}\\.{_ID}\\.(cancel|find)$", read=_NOTHING),
            *(
                TopicPermission(exchange=exchange, write=_NOTHING, read=heard)
                for exchange in (names.events, names.logs, names.reply)
            ),
        ),
    )


def worker_permissions(namespace: str, worker: str, *, declares: bool) -> Permissions:
    """Take jobs and tell of them. `declares` is the setting `amqp.declare`: then the whole namespace is its own.

    A worker writes to others' leases when it gives back what it was asked to take over, and listens to its own alone.
    """
    names, ns = Names(namespace), re.escape(namespace)
    topics = (
        TopicPermission(exchange=names.lease, write=f"^{_WORD}(\\.superseded)?$", read=f"^{worker}(\\.superseded)?$"),
        TopicPermission(exchange=names.memory, write=f"^(claim|mark\\.(cancelled|claims))\\.{worker}$", read=_NOTHING),
    )
    if declares:
        everything = f"^{ns}(\\..+)?$"
        write = f"^(amq\\.default|{ns}(\\..+)?)$"
        topics = (topics[0], replace(topics[1], read=_ANYTHING))
        return Permissions(configure=everything, write=write, read=everything, topics=topics)
    own = f"w\\.{worker}\\.(lease|superseded|control|lock|find)"
    written = f"dead|events|logs|reply|lease|lost|memory|delay\\.(out|[0-9]{{2}})|{own}"
    read = f"q\\..+|unrouted|lost|cancelled|claims|control|lease|{own}"
    return Permissions(
        configure=f"^{ns}\\.{own}$",
        write=f"^(amq\\.default|{ns}\\.({written}))$",
        read=f"^{ns}\\.({read})$",
        topics=topics,
    )


def permission_commands(settings: Settings, tenants: tuple[str, ...]) -> list[str]:
    """The commands for this worker and for each of the tenants, with a comment before each user's."""
    namespace, worker = settings.amqp.namespace, settings.worker.name
    vhost = vhost_of(settings.amqp.url[0])
    lines = [f"# The worker {worker}, with the user runner-{worker}:"]
    permissions = worker_permissions(namespace, worker, declares=settings.amqp.declare)
    lines += permissions.commands(f"runner-{worker}", vhost)
    for tenant in tenants:
        lines += ["", f"# The tenant {tenant}, with the user {tenant}:"]
        lines += tenant_permissions(namespace, tenant).commands(tenant, vhost)
    return lines


def vhost_of(url: str) -> str:
    """The virtual host that an AMQP address leads to."""
    return unquote(urlsplit(url).path.removeprefix("/")) or "/"
