"""Makes a thumbnail of each PNG picture beside this file, with nothing but the standard library."""

import base64
import json
import os
import struct
import zlib
from pathlib import Path

CHANNELS = 3


def read_png(data: bytes) -> list[bytes]:
    """The rows of an 8 bit RGB picture that is not interlaced."""
    header, packed, at = b"", b"", 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        at += length + 12
    width, _, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if (depth, colour, interlaced) != (8, 2, 0):
        raise SystemExit("only plain 8 bit RGB pictures, please")
    raw, stride = zlib.decompress(packed), width * CHANNELS + 1
    rows = [bytes(width * CHANNELS)]
    for start in range(0, len(raw), stride):
        rows.append(unfilter(raw[start], raw[start + 1 : start + stride], rows[-1]))
    return rows[1:]


def unfilter(kind: int, line: bytes, above: bytes) -> bytes:
    """Undo the filter of one row: none, sub, up, average or Paeth."""
    row = bytearray(line)
    for i, value in enumerate(line):
        left, up = row[i - CHANNELS] if i >= CHANNELS else 0, above[i]
        corner = above[i - CHANNELS] if i >= CHANNELS else 0
        paeth = min((left, up, corner), key=lambda near: abs(left + up - corner - near))
        row[i] = (value + (0, left, up, (left + up) // 2, paeth)[kind]) & 0xFF
    return bytes(row)


def shrink(rows: list[bytes], width: int) -> list[bytes]:
    """Each new pixel is the average of those that it stands for."""
    factor = max(1, len(rows[0]) // CHANNELS // width)
    small = []
    for top in range(0, len(rows) - factor + 1, factor):
        block = rows[top : top + factor]
        row = bytearray()
        for left in range(0, width * factor * CHANNELS, factor * CHANNELS):
            for channel in range(CHANNELS):
                values = [line[left + channel + step * CHANNELS] for line in block for step in range(factor)]
                row.append(sum(values) // len(values))
        small.append(bytes(row))
    return small


def write_png(rows: list[bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", len(rows[0]) // CHANNELS, len(rows), 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def main() -> None:
    width = json.loads(Path(os.environ["JOB_PAYLOAD_FILE"]).read_text())["width"]
    output = {}
    for path in sorted(Path(os.environ["JOB_CODE_DIR"]).glob("*.png")):
        rows = read_png(path.read_bytes())
        small = shrink(rows, width)
        picture = write_png(small)
        size = [len(small[0]) // CHANNELS, len(small)]
        print(f"{path.name}: {len(rows[0]) // CHANNELS} x {len(rows)} -> {size[0]} x {size[1]}, {len(picture)} bytes")
        output[path.name] = {"size": size, "png": base64.b64encode(picture).decode()}
    Path(os.environ["JOB_OUTPUT_FILE"]).write_text(json.dumps(output))


main()
