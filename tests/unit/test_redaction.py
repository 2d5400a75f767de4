"""Secrets in what a job tells: gone, whatever the chunks, and not a byte more or less."""

from itertools import pairwise
from time import process_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.job import Json, Stream
from runner.redaction import PATTERNS_MAX, Redactor, patterns

# Few letters, so that secrets overlap, contain and resemble each other.
FEW = st.text("ab\n", max_size=12).map(str.encode)
CUTS = st.lists(st.integers(0, 200), max_size=20)


def covered(values: list[bytes], data: bytes) -> bytes:
    """What the whole of it has to become."""
    shown = bytearray(data)
    for pattern in patterns(values):
        for at in range(len(data)):
            if data.startswith(pattern, at):
                shown[at : at + len(pattern)] = b"*" * len(pattern)
    return bytes(shown)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


def pump(redactor: Redactor, pieces: list[bytes], stream: Stream = Stream.OUT) -> bytes:
    return b"".join(redactor.feed(stream, piece) for piece in pieces) + redactor.flush(stream)


@given(values=st.lists(FEW, max_size=5), texts=st.lists(FEW, max_size=12), cuts=CUTS)
@example(values=[b"abab"], texts=[b"ababab"], cuts=[1, 2, 3, 4, 5])
@example(values=[b"aaaab", b"abbbb"], texts=[b"aaaabbbb"], cuts=[5])
@example(values=[b"abbaabba", b"bbaa"], texts=[b"abbaab"], cuts=[5])
def test_any_chunking_gives_the_same(values: list[bytes], texts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(text + value for text, value in zip(texts, values * len(texts), strict=False)) + b"".join(texts)
    shown = pump(Redactor(values), chunks(data, cuts))
    assert shown == covered(values, data)
    assert not any(pattern in shown for pattern in patterns(values))


@given(data=st.binary(max_size=200), cuts=CUTS)
def test_without_secrets_nothing_is_changed_or_held_back(data: bytes, cuts: list[int]) -> None:
    redactor = Redactor()
    for piece in chunks(data, cuts):
        assert redactor.feed(Stream.OUT, piece) == piece
    assert redactor.flush(Stream.OUT) == b""


def test_only_the_beginning_of_a_secret_is_held_back() -> None:
    redactor = Redactor([b"hunter22"])
    assert redactor.feed(Stream.OUT, b"the password: hunt") == b"the password: "
    assert redactor.feed(Stream.OUT, b"ing hun") == b"hunting "
    assert redactor.feed(Stream.OUT, b"ter22?") == b"********?"
    assert redactor.flush(Stream.OUT) == b""


def test_the_streams_are_apart() -> None:
    redactor = Redactor([b"hunter22"])
    assert redactor.feed(Stream.OUT, b"hunt") == b""
    assert redactor.feed(Stream.ERR, b"er22") == b"er22"
    assert redactor.flush(Stream.OUT) == b"hunt"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"hunter22\n", (b"hunter22",)),
        (b"  hunter22\r\n", (b"hunter22",)),
        (b"abc", ()),
        (b"abcd", (b"abcd",)),
        (b"", ()),
        (b" \n\n", ()),
        (b"-----BEGIN KEY-----\nMIIEpAIBAAKC\nAQ==\n-----END KEY-----\n", None),
    ],
)
def test_what_is_looked_for(value: bytes, expected: tuple[bytes, ...] | None) -> None:
    lines = (b"-----BEGIN KEY-----", b"-----END KEY-----", b"MIIEpAIBAAKC")
    assert patterns([value]) == (lines if expected is None else expected)


def test_a_long_value_is_looked_for_in_parts_none_of_which_is_short() -> None:
    value = bytes(number % 251 + 1 for number in range(64 * 1024)).replace(b"\n", b"x").replace(b" ", b"x")
    pieces = patterns([value.strip()])
    assert len(pieces) < PATTERNS_MAX
    assert {len(piece) >= 400 for piece in pieces} == {True}
    shown = pump(Redactor([value]), [b"<" + value, b">"])
    assert shown == b"<" + b"*" * len(value) + b">"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("with hunter22 in it", "with ******** in it"),
        ({"hunter22": ["x", "hunter22x"]}, {"********": ["x", "********x"]}),
        ({'a "quoted" word': 'a "quoted" word'}, {"***************": "***************"}),
        ("line one is long\nshort\nline two is long", "****************\nshort\n****************"),
        ([12345678, 1234, -1.5, True, None], ["********", 1234, -1.5, True, None]),
        ("pässwörd", "**********"),
        ("", ""),
    ],
)
def test_a_json_value_stays_one(value: Json, shown: Json) -> None:
    secrets = [b"hunter22", b'a "quoted" word\n', b"line one is long\nline two is long\n", b"12345678"]
    assert Redactor([*secrets, "pässwörd".encode()]).json(value) == shown


def test_a_json_value_is_searched_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that looked for hundreds of secrets in each of its thousands of values would stand still meanwhile."""
    searched, really = [], Redactor._mask

    def counting(redactor: Redactor, data: bytes, cut: int, masked: int) -> tuple[bytes, int]:
        searched.append(len(data))
        return really(redactor, data, cut, masked)

    monkeypatch.setattr(Redactor, "_mask", counting)
    value: Json = {"list": [*range(9999), "a hunter22", None, True], "hunter22": 5}
    shown = Redactor([b"hunter22"]).json(value)
    assert shown == {"list": [*range(9999), "a ********", None, True], "********": 5}
    assert len(searched) == 1


def test_a_text_that_is_cut_does_not_end_in_the_beginning_of_a_secret() -> None:
    redactor = Redactor([b"hunter22"])
    assert redactor.beginning(b"xxxx hunter22", 8) == "xxxx "
    assert redactor.beginning(b"xxxx hunter22", 13) == "xxxx ********"
    assert Redactor().beginning(b"xxxx hunter22", 8) == "xxxx hun"


def test_a_key_costs_little() -> None:
    """A bound that only a blunder misses: searching for 50 lines does some 200 MB/s, a byte at a time does 1."""
    key = b"\n".join(b"%064x" % (number * 7919) for number in range(50))
    redactor, piece = Redactor([key]), b"nothing to hide in this line of the log\n" * 1600
    begin = process_time()
    for _ in range(64):
        assert redactor.feed(Stream.OUT, piece) == piece
    assert process_time() - begin < 2
