"""How much disk stacks take together, against the sum of what each would take alone."""

from collections.abc import Sequence

from runner.job import Bytes
from runner.stacks.prune import LayeredImages, disk

_MB = 1_000_000


async def measure(images: LayeredImages, stacks: Sequence[str], bases: Sequence[str]) -> str:
    """A table: each stack's size, what it adds to the bases, and the share that all take of the sum."""
    names = [f"runner/{stack}:current" for stack in stacks]
    below = await disk(images, bases)
    sizes = [await disk(images, [name]) for name in names]
    added = [Bytes(await disk(images, [*bases, name]) - below) for name in names]
    alone, together = sum(sizes), await disk(images, [*bases, *names])
    rows = [f"{'image':32} {'size MB':>8} {'adds MB':>8}"]
    rows += [_row(base, size, size) for base in bases for size in [await disk(images, [base])]]
    rows += [_row(*row) for row in zip(names, sizes, added, strict=True)]
    rows.append(_row(f"{len(names)} stacks alone, and together", alone, together))
    return "\n".join([*rows, f"together they take {together / alone:.1%} of the sum"])


def _row(name: str, size: int, adds: int) -> str:
    return f"{name:32} {size / _MB:8.1f} {adds / _MB:8.1f}"
