"""The engine's framing, wherever the chunks are cut."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from runner.adapters.docker.frames import FrameParser

Frames = list[tuple[int, bytes]]


def encoded(frames: Frames) -> bytes:
    return b"".join(struct.pack(">BxxxL", stream, len(data)) + data for stream, data in frames)


def streams(pieces: Frames) -> dict[int, bytes]:
    joined: dict[int, bytes] = {}
    for stream, data in pieces:
        joined[stream] = joined.get(stream, b"") + data
    return {stream: data for stream, data in joined.items() if data}


@given(
    frames=st.lists(st.tuples(st.sampled_from([0, 1, 2, 3]), st.binary(max_size=40))),
    cuts=st.lists(st.integers(min_value=1, max_value=30), min_size=1),
)
def test_every_stream_comes_out_whole_and_in_order(frames: Frames, cuts: list[int]) -> None:
    data, parser = encoded(frames), FrameParser()
    pieces: Frames = []
    at = step = 0
    while at < len(data):
        size = cuts[step % len(cuts)]
        pieces += parser.feed(data[at : at + size])
        at, step = at + size, step + 1
    assert streams(pieces) == streams(frames)
    assert [stream for stream, data in frames if data] == _order(frames, pieces)


def _order(frames: Frames, pieces: Frames) -> list[int]:
    """The stream of each frame, told from the pieces by the frames' lengths."""
    order, rest = [], iter(pieces)
    for _, data in frames:
        got, stream = 0, -1
        while got < len(data):
            stream, piece = next(rest)
            got += len(piece)
        if data:
            assert got == len(data)
            order.append(stream)
    return order


def test_a_frame_is_handed_on_as_it_comes_whatever_length_it_claims() -> None:
    parser = FrameParser()
    assert list(parser.feed(b"\x01\0\0\0\xff\xff\xff\xffabc")) == [(1, b"abc")]
    assert list(parser.feed(b"def")) == [(1, b"def")]
