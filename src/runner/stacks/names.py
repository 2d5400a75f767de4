"""How the engine's images bear witness of the stack that they were built from."""

STACK = "runner.stack"
REVISION = "runner.revision"
USER = "runner.user"
"""The user as the stack file named it when the image was built; `UID` and `GID` are the numbers behind it."""
UID = "runner.uid"
GID = "runner.gid"

CURRENT = "current"
PREVIOUS = "previous"


def repository(stack: str) -> str:
    """Where the stack's images are, a tag a revision."""
    return f"runner/{stack}"


def tagged(stack: str, tag: str) -> str:
    """The name of one of the stack's images."""
    return f"{repository(stack)}:{tag}"
