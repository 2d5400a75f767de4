"""How much disk stacks take together, against the sum of what each would take alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import aiodocker

_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Layered:
    """An image: its whole size, and its layers from the lowest to the topmost."""

    name: str
    size: int
    layers: tuple[str, ...]


async def measure(docker: aiodocker.Docker, stacks: Sequence[str]) -> str:
    """A table: each stack's size, what it adds to others, and the share that all take of the sum."""
    images = [await _look(docker, f"runner/{name}:current") for name in stacks]
    bases = [await _look(docker, said["RepoTags"][0]) for said in await docker.images.list() if _is_base(said)]
    used = [base for base in bases if any(_stands_on(image, base) for image in images)]
    added = [image.size - max((b.size for b in used if _stands_on(image, b)), default=0) for image in images]
    alone, together = sum(image.size for image in images), sum(base.size for base in used) + sum(added)
    rows = [f"{'image':32} {'size MB':>8} {'adds MB':>8}"]
    rows += [_row(base.name, base.size, base.size) for base in used]
    rows += [_row(image.name, image.size, adds) for image, adds in zip(images, added, strict=True)]
    rows.append(_row(f"{len(images)} stacks alone, and together", alone, together))
    return "\n".join([*rows, f"together they take {together / alone:.1%} of the sum"])


def _row(name: str, size: int, adds: int) -> str:
    return f"{name:32} {size / _MB:8.1f} {adds / _MB:8.1f}"


async def _look(docker: aiodocker.Docker, name: str) -> Layered:
    said = await docker.images.inspect(name)
    return Layered(name=name, size=said["Size"], layers=tuple(said["RootFS"].get("Layers") or ()))


def _is_base(said: dict[str, object]) -> bool:
    tags = said.get("RepoTags")
    return isinstance(tags, list) and any(tag.startswith("runner-base/") for tag in tags)


def _stands_on(image: Layered, base: Layered) -> bool:
    return image.layers[: len(base.layers)] == base.layers
