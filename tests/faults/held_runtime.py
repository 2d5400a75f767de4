"""An OCI runtime that makes a container once that is let: until then its shim is there, and its start is not over."""

from dataclasses import dataclass
from pathlib import Path

from scripts.devservices.process import find_program
from tests.e2e.daemon import eventually

NAME = "held"
STACK = "held"
"""Its containers are made by this runtime."""

# It makes nothing for a shim that is gone: nobody would know of it.
_SCRIPT = """\
#!/bin/sh
for id; do :; done
has_shim() {{ read -r _ _ _ parent _ </proc/$$/stat; [ "$parent" = "$PPID" ]; }}
case " $* " in *" create "*)
    while [ -e '{folder}/'"$id" ] && has_shim; do : >'{folder}/'"$id.asked"; sleep 0.05; done
    has_shim || exit 1 ;;
esac
exec {runc} "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRuntime:
    """It stands in a folder, with a file for each container that is held."""

    folder: Path

    def install(self) -> tuple[str, ...]:
        """Write it down; the flags that tell an engine of it."""
        self.folder.mkdir()
        script = self.folder / "runtime"
        script.write_text(_SCRIPT.format(folder=self.folder, runc=find_program("runc")))
        script.chmod(0o755)
        return ("--add-runtime", f"{NAME}={script}")

    def hold(self, container: str) -> None:
        """Have the container of this id not be made."""
        (self.folder / container).touch()

    async def asked(self, container: str) -> None:
        """Return when the shim of a container that is held waits for it to be made."""

        async def asked() -> bool:
            return (self.folder / f"{container}.asked").exists()

        await eventually(asked, "the shim wants the container to be made")

    def let_go(self, container: str) -> None:
        """Have it be made after all."""
        (self.folder / container).unlink()
