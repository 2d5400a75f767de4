"""Archives as tests want them, good ones and others."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any


def tar_entry(name: str, data: bytes = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    """An entry of a tar: a file unless `type` says otherwise."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for field, value in more.items():
        setattr(info, field, value)
    return info, data


def tar_gz(*entries: tuple[tarfile.TarInfo, bytes], **options: Any) -> bytes:
    """A tar.gz of these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", **options) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_of(files: Mapping[str, bytes | str], *, executable: Iterable[str] = ()) -> bytes:
    """A tar.gz of these files."""
    return tar_gz(
        *(
            tar_entry(
                name, data.encode() if isinstance(data, str) else data, mode=0o755 if name in executable else 0o644
            )
            for name, data in files.items()
        )
    )


def zip_of(files: Mapping[str, bytes | str], *, mode: int = 0o644, kind: int = stat.S_IFREG, method: int = 8) -> bytes:
    """A zip of these files, all of one mode and kind."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = (kind | mode) << 16
            archive.writestr(info, data, compress_type=method)
    return buffer.getvalue()
