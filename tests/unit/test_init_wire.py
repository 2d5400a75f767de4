"""The init's wire format: what is sent, and the scanner that takes the records out of a job's streams."""

import errno
import struct
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.init.wire import BODY_MAX, Description, OutputScanner, Place

START, END = b"<start-nonce-16>", b"<end--nonce--16>"
NONCE = START + END
STARTED = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ENDED = datetime(2026, 3, 1, 12, 0, 1, 654321, tzinfo=UTC)
UNKNOWN = 2**64 - 1

# Pieces that make trouble likely: the nonces cut short, doubled, changed in one place, and next to each other.
PIECES = st.sampled_from(
    [*(NONCE[:n] for n in range(1, 16)), *(END[:n] for n in range(1, 16)), START[1:], END[1:], b"<"]
)
JUNK = (
    st.lists(PIECES | st.binary(max_size=20), max_size=12)
    .map(b"".join)
    .filter(lambda data: START not in data and END not in data)
)


def nanoseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000 + 789


def start_record() -> bytes:
    return START + struct.pack("<Q", nanoseconds(STARTED)).hex().encode() + b"\n"


def end_record(
    *, status: int = 0, exec_errno: int = 0, counters: tuple[int, int, int] = (1, 2, 3), told: bytes = bytes(8)
) -> bytes:
    body = struct.pack("<iiQQQQI", status, exec_errno, nanoseconds(ENDED), *counters, 1)
    body += struct.pack("<QQQQ", 4096, 1024, 10, 3) + told
    return END + (struct.pack("<I", len(body)) + body).hex().encode() + b"\n"


def last_words() -> bytes:
    return END + b"\n"


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


def scan(stdout: list[bytes], stderr: list[bytes]) -> tuple[OutputScanner, bytes, bytes]:
    scanner = OutputScanner(NONCE, ("/work",))
    out = b"".join(scanner.feed_stdout(chunk) for chunk in stdout) + scanner.flush_stdout()
    err = b"".join(scanner.feed_stderr(chunk) for chunk in stderr) + scanner.flush_stderr()
    return scanner, out, err


def description(**changes: object) -> Description:
    fields: dict[str, object] = {
        "nonce": NONCE,
        "argv": ("echo", "hi"),
        "env": {"A": "b=c"},
        "cwd": "/work",
        "timeout": timedelta(seconds=1.5),
        "rlimits": {1: 1 << 30},
        "places": ("/work",),
    }
    return Description(**(fields | changes))  # type: ignore[arg-type]


@given(out=JUNK, err=JUNK, cuts=st.lists(st.integers(0, 2000), max_size=30))
@example(out=END[:15], err=END[:15], cuts=[])
@example(out=START[:15] + END[:15], err=END[:1] * 40, cuts=list(range(200)))
def test_any_chunking_gives_the_same_bytes_and_finds_the_records(out: bytes, err: bytes, cuts: list[int]) -> None:
    stdout, stderr = start_record() + out + end_record(status=3 << 8), err + last_words()
    scanner, own_out, own_err = scan(chunks(stdout, cuts), chunks(stderr, cuts))
    assert (own_out, own_err) == (out, err)
    assert scanner.started == STARTED
    assert scanner.report is not None
    assert scanner.report.status == 3 << 8
    assert scanner.report.ended == ENDED
    assert scanner.complete


@given(data=JUNK, cuts=st.lists(st.integers(0, 400)))
def test_streams_that_break_off_keep_all_bytes_and_prove_nothing(data: bytes, cuts: list[int]) -> None:
    scanner, out, err = scan(chunks(data, cuts), chunks(data, cuts))
    assert (out, err) == (data, data)
    assert scanner.started is None
    assert scanner.report is None
    assert not scanner.complete


@pytest.mark.parametrize("self_similar", [b"\0" * 16, b"ab" * 8, b"aaaaaaaaaaaaaaab", b"aab" * 5 + b"a"])
def test_a_nonce_that_repeats_itself_is_found(self_similar: bytes) -> None:
    for shift in range(17):
        stream = b"x" + self_similar[:shift] + self_similar + b"\ny"
        position = stream.find(self_similar)
        scanner = OutputScanner(START + self_similar, ())
        own = b"".join(scanner.feed_stderr(bytes([byte])) for byte in stream) + scanner.flush_stderr()
        assert own == stream[:position] + stream[position + 17 :]


def test_output_is_handed_on_at_once_unless_a_nonce_may_have_begun() -> None:
    scanner = OutputScanner(NONCE, ())
    assert scanner.feed_stdout(b"a line\n") == b"a line\n"
    assert scanner.feed_stdout(b"a < b <en") == b"a < b "
    assert scanner.feed_stdout(b"d>\n") == b"<end>\n"
    assert scanner.feed_stderr(b"x" + START) == b"x" + START


@pytest.mark.parametrize(
    ("told", "moment"), [(struct.pack("<Q", nanoseconds(ENDED)), ENDED), (bytes(8), None), (b"", None)]
)
def test_a_sigterm_from_outside_is_told_by_an_init_that_knows_of_it(told: bytes, moment: datetime | None) -> None:
    scanner, _, _ = scan([start_record(), end_record(told=told)], [last_words()])
    assert scanner.report is not None
    assert (scanner.report.told_to_end, scanner.report.places[0].path) == (moment, "/work")


@pytest.mark.parametrize("cut", range(1, len(end_record())))
def test_a_report_that_breaks_off_is_no_report_and_no_output(cut: int) -> None:
    scanner, out, _ = scan([start_record() + b"text" + end_record()[:cut]], [last_words()])
    assert scanner.report is None
    assert not scanner.complete
    assert out == b"text" + (END[:cut] if cut < len(END) else b"")


def test_a_report_of_another_length_is_not_believed() -> None:
    scanner = OutputScanner(NONCE, ("/work", "/scratch"))
    assert scanner.feed_stdout(end_record()) == b""
    assert scanner.report is None


def test_the_report_is_found_when_the_start_record_was_stolen() -> None:
    scanner, out, _ = scan([b"text" + end_record()], [last_words()])
    assert out == b"text"
    assert scanner.started is None
    assert scanner.complete


def test_each_record_counts_once() -> None:
    scanner, out, err = scan([start_record() + start_record()], [last_words() + last_words()])
    assert out == start_record()
    assert err == last_words()
    assert not scanner.complete


@pytest.mark.parametrize(
    ("stdout", "stderr"),
    [
        (START + b"not sixteen digits\n" + end_record(), last_words()),
        (start_record() + END + b"zzzzzzzz" + b"00" * 99, last_words()),
        (start_record() + END + b"\xff" * 300, last_words()),
        (start_record() + end_record(), END),
    ],
)
def test_a_record_that_is_broken_proves_nothing(stdout: bytes, stderr: bytes) -> None:
    scanner, _, _ = scan([stdout], [stderr])
    assert not (scanner.started and scanner.complete)


def test_a_report_in_full() -> None:
    scanner, _, _ = scan([end_record(status=-1, exec_errno=errno.ENOENT, counters=(2_500_000_000, 4096, 7))], [])
    report = scanner.report
    assert report is not None
    assert (report.status, report.exec_errno) == (-1, errno.ENOENT)
    assert (report.cpu_seconds, report.memory_peak_bytes, report.oom_kills) == (2.5, 4096, 7)
    assert report.places == (Place(path="/work", bytes_total=4096, bytes_free=1024, inodes_total=10, inodes_free=3),)


def test_unknown_counters_are_none() -> None:
    scanner, _, _ = scan([end_record(counters=(UNKNOWN, UNKNOWN, UNKNOWN))], [])
    report = scanner.report
    assert report is not None
    assert (report.cpu_seconds, report.memory_peak_bytes, report.oom_kills) == (None, None, None)


def test_the_frame_byte_for_byte() -> None:
    def item(tag: int, value: bytes) -> bytes:
        return bytes([tag]) + len(value).to_bytes(4, "little") + value

    body = item(1, NONCE) + item(2, b"echo") + item(2, b"hi") + item(3, b"A=b=c") + item(4, b"/work")
    body += item(5, (1500).to_bytes(8, "little"))
    body += item(6, (1).to_bytes(4, "little") + 2 * (1 << 30).to_bytes(8, "little")) + item(7, b"/work")
    assert description().encode() == b"RUN1" + len(body).to_bytes(4, "little") + body


def test_a_leash_is_one_more_item() -> None:
    assert description(leashed=True).encode()[8:] == description().encode()[8:] + b"\x0c\0\0\0\0"


def test_a_job_that_is_not_to_start_late_is_told_so_in_milliseconds() -> None:
    until = datetime(1970, 1, 1, 0, 0, 1, 500_999, tzinfo=UTC)
    assert description(not_after=until).encode()[8:] == description().encode()[8:] + b"\x0b\x08\0\0\0\xdc\x05" + bytes(
        6
    )


def test_secrets_follow_their_folder() -> None:
    plain, folder = description().encode()[8:], b"\x08\x02\0\0\0/s"
    given = description(secrets_folder="/s", secrets={"a": b"1\0\n", "b": b""})
    assert given.encode()[8:] == plain + folder + b"\x09\x05\0\0\0a\x001\0\n" + b"\x09\x02\0\0\0b\0"
    assert description(secrets_folder="/s").encode()[8:] == plain + folder


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"argv": ()}, "argv"),
        ({"argv": ("echo", "a\0b")}, r"argv\[1\]"),
        ({"argv": ("\ud800",)}, r"argv\[0\]"),
        ({"env": {"A": "\0"}}, r"env\[A\]"),
        ({"env": {"A=B": "c"}}, "env: 'A=B'"),
        ({"env": {"": "c"}}, "env: ''"),
        ({"cwd": "/\0"}, "cwd"),
        ({"nonce": b"short"}, "nonce"),
        ({"nonce": START + START}, "nonce"),
        ({"timeout": timedelta(seconds=-1)}, "timeout"),
        ({"places": ("/",) * 9}, "places"),
        ({"rlimits": dict.fromkeys(range(17), 0)}, "rlimits"),
        ({"secrets_folder": "/s", "secrets": {str(n): b"" for n in range(33)}}, "secrets"),
        ({"secrets_folder": "/s", "secrets": {"a/b": b""}}, "secrets: 'a/b'"),
        ({"secrets_folder": "/s", "secrets": {"": b""}}, "secrets: ''"),
        ({"secrets_folder": "/s", "secrets": {"a\0b": b""}}, "secrets: has a NUL"),
        ({"secrets": {"a": b""}}, "secrets_folder"),
        ({"argv": ("x" * BODY_MAX,)}, "argv, env and secrets"),
        ({"env": {str(n): "x" * 100_000 for n in range(15)}}, "argv, env and secrets"),
    ],
)
def test_what_cannot_be_said_names_its_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        description(**changes).encode()
