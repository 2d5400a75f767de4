"""Unpacks a code package, whoever made it, without ever writing beside its folder or beyond its bounds."""

from pathlib import Path
from typing import BinaryIO

from runner.adapters.packages.gunzip import Gunzip
from runner.adapters.packages.tar import TarReader
from runner.adapters.packages.tree import Extent, GoOn, Tree, damage
from runner.adapters.packages.zip import ZipReader

_MAGIC_GZIP = b"\x1f\x8b"
_MAGIC_ZIP = (b"PK\3\4", b"PK\5\6")


def unpack(archive: BinaryIO, folder: Path, *, most: int, go_on: GoOn) -> Extent:
    """Unpack a tar.gz or a zip into an empty folder; how much that is.

    Raises `RejectedError` that names the entry that is wrong, or the archive, and `OSError` when the disk fails us.
    Files are readable, and executable where they were for anybody; folders can be changed by their owner alone.
    """
    tree = Tree(folder, most=most, go_on=go_on)
    magic = archive.read(4)
    archive.seek(0)
    if magic.startswith(_MAGIC_GZIP):
        TarReader(stream=Gunzip(archive, go_on), tree=tree, go_on=go_on).run()
    elif magic.startswith(_MAGIC_ZIP):
        ZipReader(file=archive, tree=tree).run()
    else:
        raise damage("is neither a tar.gz nor a zip")
    return tree.finish()
