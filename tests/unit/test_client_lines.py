"""Each line of a log is shown once, however its batches overlap."""

import json

from tests.fake_worker import batch

from runner.client.lines import LineReader
from runner.client.messages import LogBatch, decode_batch
from runner.job import Stream


def a_batch(
    seq: int | None, *lines: str, off: int = 0, stream: str = "out", claim: str = "c1", end: bool = False
) -> LogBatch:
    offsets = (off, 0) if stream == "out" else (0, off)
    told = [(stream, line) for line in lines]
    return decode_batch(batch("id", seq, told, off=offsets, claim=claim, end=end))


def shown(reader: LineReader, *batches: LogBatch) -> str:
    lines = [line for batch in batches for line in reader.read(batch)]
    return "".join(line.text if line.partial else line.text + "\n" for line in lines)


def test_batches_in_a_row_are_shown_as_they_are() -> None:
    assert shown(LineReader(), a_batch(1, "a\n", "b"), a_batch(2, "c\n", off=3)) == "a\nbc\n"


def test_a_restarted_worker_may_cut_the_same_text_anew() -> None:
    before = [a_batch(1, "one\n"), a_batch(2, "two\n", "thr", off=4)]
    after = [a_batch(2, "two\n", "three\n", "four\n", off=4), a_batch(3, "five\n", off=19)]
    assert shown(LineReader(), *before, *after) == "one\ntwo\nthree\nfour\nfive\n"


def test_the_rest_of_a_line_begins_at_a_character() -> None:
    assert shown(LineReader(), a_batch(1, "ä"), a_batch(1, "äö\n")) == "äö\n"


def test_a_newline_that_came_later_is_not_lost() -> None:
    assert shown(LineReader(), a_batch(1, "end"), a_batch(1, "end\n")) == "end\n"


def test_streams_and_claims_are_apart() -> None:
    same = [a_batch(1, "x\n"), a_batch(2, "x\n", stream="err"), a_batch(1, "x\n", claim="c2")]
    assert shown(LineReader(), *same) == "x\nx\nx\n"


def test_text_that_was_replaced_is_never_left_out() -> None:
    # Three bytes that are no text, each shown as a character of three bytes.
    before = [a_batch(1, "\ufffd\ufffd\ufffd\n"), a_batch(2, "new\n", off=4)]
    assert shown(LineReader(), *before) == "\ufffd\ufffd\ufffd\nnew\n"


def test_missing_batches_are_told_where_they_are_missing() -> None:
    lines = [line for told in (a_batch(3, "a\n"), a_batch(5, "b\n", off=9)) for line in LineReader().read(told)]
    assert [line.stream for line in lines] == [Stream.OUT, Stream.OUT]
    reader = LineReader()
    lines = [line for told in (a_batch(3, "a\n"), a_batch(5, "b\n", off=9)) for line in reader.read(told)]
    assert [line.stream for line in lines] == [Stream.OUT, Stream.SYS, Stream.OUT]
    assert "missing" in lines[1].text


def test_what_was_shown_live_is_not_shown_again_at_the_end() -> None:
    head, end = a_batch(1, "a\n"), a_batch(2, "c\n", "d\n", "e\n", off=4, end=True)
    live = [a_batch(None, "b\n", "c\n", off=2), a_batch(None, "e\n", off=8)]
    assert shown(LineReader(live=True), head, *live, end) == "a\nb\nc\ne\nd\n"
    assert shown(LineReader(), head, *live, end) == "a\nc\nd\ne\n"


def test_our_own_words_have_no_place_in_a_stream() -> None:
    body = batch("id", 1, [("sys", "… 2 lines, 9 bytes omitted …\n"), ("out", "z\n")], off=(11, 0))
    reader = LineReader()
    assert shown(reader, decode_batch(body)) == "… 2 lines, 9 bytes omitted …\nz\n"
    assert json.loads(decode_batch(body).body)["seq"] == 1
