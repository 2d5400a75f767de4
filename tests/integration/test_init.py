"""The init as the PID 1 that it is, under attack: broken frames, storms, orphans, stolen descriptors, full pipes."""

import errno
import fcntl
import hashlib
import os
import platform
import resource
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integration.pid1 import (
    AS_NOBODY,
    ENV,
    IS_ROOT,
    LIMIT,
    WITHOUT_CAPABILITIES,
    Pid1,
    describe,
    eventually,
    python,
    run,
    sh,
)

from runner.init.binary import KILL_SIGNAL
from runner.init.build import MACHINES, build, compiler
from runner.init.wire import BODY_MAX, Report

CGROUP = Path("/sys/fs/cgroup")
ORPHAN = "setsid sh -c 'trap \"\" TERM HUP INT; {}' & "


# Fills standard output to the last byte, without making it non-blocking, and says on standard error how much went in.
FILL = """
import os
fd = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK)
count = 0
for size in (4096, 1):
    try:
        while True:
            count += os.write(fd, b"x" * size)
    except BlockingIOError:
        pass
os.write(2, b"%d full\\n" % count)
os._exit(5)
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that any user may read, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def _memory_of(pid: int) -> bytes:
    """What a process may write to of its own memory."""
    found = b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, modes, *_ = line.split()
            start, end = (int(edge, 16) for edge in span.split("-"))
            if modes.startswith("rw"):
                memory.seek(start)
                found += memory.read(end - start)
    return found


@pytest.fixture(scope="module")
def binary(folder: Path) -> Path:
    """The init, from the source as it is now."""
    build(folder / "init", extra=("-Werror",))
    return folder / "init"


# ---- frames


def test_a_job_from_end_to_end(binary: Path) -> None:
    before = datetime.now(UTC)
    end = run(binary, describe(sh("cat; echo oops >&2; exit 3")), b"hello\n")
    assert (end.stdout, end.stderr, end.code) == (b"hello\n", b"oops\n", 3)
    assert end.told.status == 3 << 8
    assert end.told.exec_errno == 0
    assert end.started is not None
    tick = timedelta(microseconds=1)
    assert before - tick <= end.started <= end.told.ended <= datetime.now(UTC)


def test_a_frame_byte_by_byte(binary: Path) -> None:
    job = describe(("echo", "hi"))
    with Pid1(binary) as init:
        init.expect(job)
        for byte in job.encode():
            init.send_alone(bytes([byte]))
        assert init.finish().stdout == b"hi\n"


def test_a_frame_cut_anywhere(binary: Path) -> None:
    job = describe(("echo", "hi"))
    frame = job.encode()
    for cut in range(1, len(frame)):
        with Pid1(binary) as init:
            init.expect(job)
            init.send_alone(frame[:cut])
            init.send(frame[cut:])
            init.stdin.close()
            assert init.finish().stdout == b"hi\n", cut


def test_a_frame_that_breaks_off_runs_nothing(binary: Path) -> None:
    job = describe(("echo", "hi"))
    frame = job.encode()
    for size in range(len(frame)):
        with Pid1(binary) as init:
            init.send(frame[:size])
            init.stdin.close()
            end = init.finish()
        assert (end.raw_stdout, end.code) == (b"", 70 if size else 0), size


def item(tag: int, value: bytes) -> bytes:
    return struct.pack("<BI", tag, len(value)) + value


NONCE, ECHO = item(1, bytes(range(32))), item(2, b"echo")


@pytest.mark.parametrize(
    "frame",
    [
        b"RUN2" + struct.pack("<I", len(NONCE + ECHO)) + NONCE + ECHO,
        b"RUN1" + struct.pack("<I", BODY_MAX + 1),
        b"RUN1" + struct.pack("<I", 2**32 - 1),
        *(
            b"RUN1" + struct.pack("<I", len(body)) + body
            for body in [
                b"",
                NONCE,
                ECHO,
                NONCE + ECHO + b"\x02",
                NONCE + ECHO + b"\x02\0\0\0",
                NONCE + ECHO + struct.pack("<BI", 2, 1),
                NONCE + ECHO + struct.pack("<BI", 2, 2**32 - 1),
                NONCE + ECHO + item(0, b""),
                NONCE + ECHO + item(10, b"x"),
                NONCE + ECHO + item(9, b"name\0value"),
                NONCE + ECHO + item(8, b"/") + item(9, b"name"),
                NONCE + ECHO + item(8, b"/") + item(9, b"\0value"),
                NONCE + ECHO + item(8, b"/") + item(9, b""),
                NONCE + ECHO + item(8, b"/") + item(9, b"name\0value") * 33,
                item(1, b"short") + ECHO,
                NONCE + ECHO + item(5, b"1234567"),
                NONCE + ECHO + item(6, b"1234"),
                NONCE + ECHO + item(6, bytes(20)) * 17,
                NONCE + ECHO + item(7, b"/") * 9,
            ]
        ),
    ],
)
def test_a_broken_frame_runs_nothing(binary: Path, frame: bytes) -> None:
    with Pid1(binary) as init:
        init.send(frame)
        init.stdin.close()
        end = init.finish()
    assert (end.raw_stdout, end.code) == (b"", 70)
    assert end.stderr.startswith(b"runner-init: ")


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_frame_with_wrong_bytes_is_refused_or_run(binary: Path, changes: list[tuple[int, int]]) -> None:
    job = describe(("true",), places=("/",), env={"A": "b"})
    frame = bytearray(job.encode())
    for position, value in changes:
        frame[8 + position % (len(frame) - 8)] = value
    with Pid1(binary) as init:
        init.send(bytes(frame))
        init.stdin.close()
        end = init.finish()
    assert (end.raw_stdout == b"") == (end.code == 70)
    if end.code != 70:
        _, _, record = end.raw_stdout.partition(end.stderr[-17:-1])
        raw = bytes.fromhex(record.decode("ascii"))
        assert len(raw) == 4 + struct.unpack_from("<I", raw)[0]
        assert end.raw_stdout.endswith(b"\n")


def test_the_smallest_frame(binary: Path) -> None:
    with Pid1(binary) as init:
        init.send(b"RUN1" + struct.pack("<I", len(NONCE + ECHO)) + NONCE + ECHO)
        init.stdin.close()
        end = init.finish()
    assert end.raw_stdout[:16] == bytes(range(16))
    assert end.raw_stdout[32:34] == b"\n\n"
    assert end.raw_stdout[34:50] == bytes(range(16, 32))
    assert end.stderr == bytes(range(16, 32)) + b"\n"


def test_the_input_that_follows_the_frame_is_the_jobs_to_the_byte(binary: Path) -> None:
    data = os.urandom(3_000_000)
    end = run(binary, describe(("cat",)), data)
    assert hashlib.sha256(end.stdout).digest() == hashlib.sha256(data).digest()
    assert end.told.status == 0


def test_a_job_without_input_reads_the_end_at_once(binary: Path) -> None:
    assert run(binary, describe(sh("cat; echo end"))).stdout == b"end\n"


def test_only_pid_1_runs_it(binary: Path) -> None:
    done = subprocess.run([binary], input=describe(("echo",)).encode(), capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (70, b"")
    assert b"PID 1" in done.stderr


# ---- what the job is given


@pytest.fixture
def safe(folder: Path) -> Iterator[Path]:
    """An empty folder of nobody's, for secrets."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name)
        if IS_ROOT:
            os.chown(path, 65534, 65534)
        yield path
        path.chmod(0o700)  # for a user who is not root to empty it


def test_secrets_are_files_of_the_jobs_user_before_the_job_is_there(binary: Path, safe: Path) -> None:
    values = {"token": b"hunter22\n", "raw": bytes(range(256)), "none": b""}
    script = f"cd {safe} && stat -c '%n %a %u' . token raw none && cat token && exec od -An -v -tx1 -w256 raw"
    end = run(binary, replace(describe(sh(script)), secrets_folder=str(safe), secrets=values), wrap=AS_NOBODY)
    user = 65534 if IS_ROOT else 0
    stats = "".join(
        f"{name} {mode} {user}\n" for name, mode in [(".", 500), ("token", 400), ("raw", 400), ("none", 400)]
    )
    assert end.stdout.decode() == f"{stats}hunter22\n {bytes(range(256)).hex(' ')}\n"
    assert {path.name: path.read_bytes() for path in safe.iterdir()} == values


def test_secrets_as_large_as_they_may_be(binary: Path, safe: Path) -> None:
    values = {f"n{number}": os.urandom(8 * 1024) for number in range(32)}
    job = replace(describe((*sh("echo $#"), *["x" * 100_000] * 11)), secrets_folder=str(safe), secrets=values)
    with Pid1(binary, wrap=AS_NOBODY) as init:
        init.start(job, b"input")
        assert init.finish().stdout == b"10\n"
    assert {path.name: path.read_bytes() for path in safe.iterdir()} == values


SMALL_DISK = ("sh", "-c", 'mount -t tmpfs -o size=4k,mode=0777 none "$0" && exec "$@"')


@pytest.mark.parametrize("fault", ["taken", "missing", "full"])
def test_without_its_secrets_no_job_is_started(binary: Path, safe: Path, fault: str) -> None:
    if fault == "taken":
        (safe / "token").write_bytes(b"older")
    where = str(safe / "missing" if fault == "missing" else safe)
    wrap = (*SMALL_DISK, where, *AS_NOBODY) if fault == "full" else AS_NOBODY
    job = replace(describe(("echo", "hi")), secrets_folder=where, secrets={"token": b"hunter22" * 1024})
    end = run(binary, job, wrap=wrap)
    assert (end.raw_stdout, end.stderr, end.code) == (b"", b"runner-init: the secrets cannot be written\n", 70)


def test_a_description_that_comes_too_late_starts_nothing(binary: Path) -> None:
    now = datetime.now(UTC)
    end = run(binary, replace(describe(("echo", "hi")), not_after=now - timedelta(milliseconds=1)))
    assert (end.raw_stdout, end.code) == (b"", 70)
    assert end.stderr == b"runner-init: the job description came too late: its start was given up\n"
    end = run(binary, replace(describe(("echo", "hi")), not_after=now + timedelta(seconds=30)))
    assert (end.stdout, end.code) == (b"hi\n", 0)


def test_the_inits_memory_keeps_no_secret(binary: Path, safe: Path) -> None:
    """As root, who may look into it: of what was on its way, the values are wiped, and all else is still there."""
    plain = describe(sh("echo up; exec sleep 60"), env={**ENV, "MARK": "mark-of-env"})
    job = replace(plain, secrets_folder=str(safe), secrets={"token": b"hunter22"})
    with Pid1(binary) as init:
        init.start(job)
        init.read_until(b"up\n")
        memory = _memory_of(init.pid)
        init.signal(KILL_SIGNAL)
        init.finish()
    assert b"mark-of-env" in memory
    assert b"hunter22" not in memory


def test_arguments_and_environment_of_400_kib(binary: Path) -> None:
    words = tuple(f"{n}" * 100_000 for n in range(4))
    env = {f"V{n}": "é" * 50_000 for n in range(4)}
    code = "import sys, os; print(sys.argv[1:] == [str(n) * 100_000 for n in range(4)],"
    code += "[os.environ.get(f'V{n}') == 'é' * 50_000 for n in range(4)])"
    end = run(binary, describe((*python(code), *words), env={**env, "LANG": "C.UTF-8"}))
    assert end.stdout == b"True [True, True, True, True]\n"


def test_thousands_of_empty_words(binary: Path) -> None:
    end = run(binary, describe((*sh("echo $#"), *[""] * 100_001), env=ENV))
    assert end.stdout == b"100000\n"


def test_the_environment_is_the_descriptions_and_no_other(binary: Path) -> None:
    job = describe(("env",), env={**ENV, "A": "b=c", "EMPTY": ""}, timeout=timedelta(seconds=90))
    end = run(binary, job, wrap=("env", "SECRET=1"))
    assert end.started is not None
    deadline = ceil((end.started + timedelta(seconds=90)).timestamp())
    expected = {**ENV, "A": "b=c", "EMPTY": "", "JOB_DEADLINE": str(deadline)}
    assert sorted(end.stdout.decode().splitlines()) == sorted(f"{name}={value}" for name, value in expected.items())


def test_the_job_goes_before_the_init_where_memory_is_short(binary: Path) -> None:
    own = Path("/proc/self/oom_score_adj").read_text()
    # The init is first itself for a moment, so that what it starts is so from the beginning.
    code = f"while [ $(cat /proc/1/oom_score_adj) != {own.strip()} ]; do :; done; cat /proc/self/oom_score_adj"
    end = run(binary, describe(sh(code), env=ENV), wrap=AS_NOBODY)
    assert end.stdout == b"1000\n"


def test_signals_are_as_new_whatever_the_runtime_left(binary: Path) -> None:
    wrap = ("env", "--ignore-signal", "--block-signal")
    status = run(binary, describe(("cat", "/proc/self/status")), wrap=wrap).stdout.decode()
    masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("Sig", "ShdPnd")))
    del masks["SigQ"]
    assert masks == dict.fromkeys(("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"), "0" * 16)


def test_no_descriptor_but_the_three(binary: Path) -> None:
    code = """
import fcntl
for fd in range(4096):
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
        print(fd, end=" ")
    except OSError:
        pass
"""
    with Path("/dev/null").open("rb") as leaked:
        high = fcntl.fcntl(leaked, fcntl.F_DUPFD, 900)
        try:
            with Pid1(binary, pass_fds=(leaked.fileno(), high)) as init:
                init.start(describe(python(code)))
                assert init.finish().stdout == b"0 1 2 "
        finally:
            os.close(high)


SOCKETS = """
import socket
for family, kind, protocol in ((1, 1, 0), (1, 5, 0), (2, 1, 0), (2, 2, 17), (10, 1, 6), (2, 1, 262),
                               (2, 2, 1), (10, 2, 58), (2, 3, 255), (16, 3, 0), (16, 2, 2), (17, 3, 0), (38, 5, 0),
                               (40, 1, 0)):
    try:
        socket.socket(family, kind, protocol)
    except OSError as error:
        print(error.errno, end=" ")
    else:
        print("-", end=" ")
"""


def test_a_job_of_few_sockets_opens_no_others(binary: Path) -> None:
    end = run(binary, replace(describe(python(SOCKETS)), few_sockets=True))
    opened, refused = end.stdout.decode().split()[:6], end.stdout.decode().split()[6:]
    assert opened[:5] == ["-"] * 5
    assert opened[5] != str(errno.EAFNOSUPPORT)  # not every kernel has it
    assert refused == [str(errno.EAFNOSUPPORT)] * 8


def test_a_job_of_all_sockets_is_not_filtered(binary: Path) -> None:
    status = "import re; print(re.search('Seccomp_filters:.*', open('/proc/self/status').read())[0])"
    few, all_ = (
        run(binary, replace(describe(python(status)), few_sockets=few)).stdout.split() for few in (True, False)
    )
    assert int(few[1]) == int(all_[1]) + 1


def test_session_folder_and_limits(binary: Path, folder: Path) -> None:
    job = describe(
        sh("ps -o sid= -p $$ | tr -d ' '; echo $$; pwd; ulimit -n; ulimit -c"),
        cwd=str(folder),
        rlimits={resource.RLIMIT_NOFILE: 77},
    )
    sid, pid, cwd, files, core = run(binary, job).stdout.decode().split()
    assert sid == pid
    assert (cwd, files, core) == (str(folder), "77", "0")


def test_a_file_over_its_size_ends_the_job(binary: Path, folder: Path) -> None:
    job = describe(sh(f"exec head -c 5000 /dev/zero > {folder}/big"), rlimits={resource.RLIMIT_FSIZE: 1000})
    end = run(binary, job)
    assert end.told.status == signal.SIGXFSZ
    assert end.code == 128 + signal.SIGXFSZ
    assert (folder / "big").stat().st_size == 1000


# ---- how it ends


def test_every_exit_code(binary: Path) -> None:
    for code in range(256):
        end = run(binary, describe(sh(f"exit {code}")))
        assert (end.told.status, end.code) == (code << 8, code)


def test_every_deadly_signal(binary: Path) -> None:
    harmless = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    stops = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    for number in sorted(signal.valid_signals() - harmless - stops):
        end = run(binary, describe(sh(f"kill -{int(number)} $$; sleep 60")))
        assert (end.told.status, end.code) == (number, 128 + number)


@pytest.fixture(scope="module")
def broken(folder: Path) -> Path:
    """Files that cannot be executed, each for a reason of its own."""
    place = folder / "broken"
    place.mkdir()
    for name, text, mode in [
        ("plain", "#!/bin/sh\n", 0o644),
        ("no-interpreter", "#!/nope\n", 0o755),
        ("no-format", "echo hi\n", 0o755),
        ("echo", "", 0o644),
    ]:
        (place / name).write_text(text)
        (place / name).chmod(mode)
    return place


@pytest.mark.parametrize(
    ("argv", "error", "code"),
    [
        (("no-such-command",), errno.ENOENT, 127),
        (("",), errno.ENOENT, 127),
        (("/nope/nope",), errno.ENOENT, 127),
        (("/dev/null/nope",), errno.ENOTDIR, 127),
        (("{}",), errno.EACCES, 126),
        (("{}/plain",), errno.EACCES, 126),
        (("plain",), errno.EACCES, 126),
        (("{}/no-interpreter",), errno.ENOENT, 127),
        (("{}/no-format",), errno.ENOEXEC, 126),
        (("no-format",), errno.ENOEXEC, 126),
        (("echo", "x" * 200_000), errno.E2BIG, 126),
        (("n" * 5000,), errno.ENOENT, 127),
    ],
)
def test_what_cannot_be_executed(binary: Path, broken: Path, argv: tuple[str, ...], error: int, code: int) -> None:
    job = describe((word.format(broken) for word in argv), env={"PATH": f"/nope:/dev/null:{broken}:/usr/bin:/bin"})
    end = run(binary, job)
    assert (end.told.status, end.told.exec_errno, end.code) == (-1, error, code)
    assert (end.stdout, end.stderr) == (b"", b"")
    assert end.started is not None


def test_the_search_goes_on_where_a_file_may_not_be_executed(binary: Path, broken: Path) -> None:
    path = f"{broken}:/usr/bin:/bin"
    assert run(binary, describe(("echo", "found"), env={"PATH": path})).stdout == b"found\n"


def test_an_empty_folder_of_the_path_is_the_current_one(binary: Path, broken: Path) -> None:
    end = run(binary, describe(("no-format",), env={"PATH": "/nope::/nope"}, cwd=str(broken)))
    assert end.told.exec_errno == errno.ENOEXEC


def test_without_a_path_the_usual_folders_are_searched(binary: Path) -> None:
    assert run(binary, describe(("echo", "found"), env={})).stdout == b"found\n"


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"cwd": "/nope"}, errno.ENOENT), ({"rlimits": {99: 1}}, errno.EINVAL), ({"cwd": "/dev/null"}, errno.ENOTDIR)],
)
def test_a_folder_or_limit_that_cannot_be_had(binary: Path, changes: dict[str, str], error: int) -> None:
    end = run(binary, describe(("echo",), **changes))  # type: ignore[arg-type]
    assert (end.told.status, end.told.exec_errno) == (-1, error)


# ---- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_goes_on_to_every_process(binary: Path, name: str) -> None:
    code = f"""
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.{name}}})
child = os.fork()
os.write(1, b"up\\n")
signal.sigwait({{signal.{name}}})
os.write(1, b"main\\n" if child else b"child\\n")
if child:
    os.wait()
os._exit(9)
"""
    with Pid1(binary) as init:
        init.start(describe(python(code)))
        init.read_until(b"up\nup\n")
        init.signal(getattr(signal, name))
        end = init.finish()
    assert sorted(end.stdout.split()) == [b"child", b"main", b"up", b"up"]
    assert (end.told.status, end.code) == (9 << 8, 9)


def test_a_sigterm_from_outside_is_told_whatever_the_job_makes_of_it(binary: Path) -> None:
    with Pid1(binary) as init:
        init.start(describe(sh("trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done")))
        init.read_until(b"up\n")
        before = datetime.now(UTC)
        init.signal(signal.SIGTERM)
        told = init.finish().told
    assert told.status == 0
    assert told.told_to_end is not None
    assert before - timedelta(milliseconds=1) <= told.told_to_end <= told.ended


def test_no_other_signal_counts_as_one(binary: Path) -> None:
    with Pid1(binary) as init:
        init.start(describe(sh("trap 'exit 0' HUP; echo up; while :; do sleep 0.01; done")))
        init.read_until(b"up\n")
        init.signal(signal.SIGHUP)
        assert init.finish().told.told_to_end is None


# A siginfo that names no sender is refused with a code of the kernel's own, and any other is told by its code.
PRETENDS = """
import ctypes, os, signal, struct
signal.signal(15, lambda *_: None)
os.kill(1, 15)
signal.sigtimedwait([], 0.05)
libc = ctypes.CDLL(None)
for code in (0, 0x80, -1, -6):
    info = struct.pack("<iiiiii", 15, 0, code, 0, 0, 0).ljust(128, b"\\0")
    libc.syscall({number}, 1, 15, info)
    signal.sigtimedwait([], 0.05)
os._exit(0)
"""


def test_a_job_cannot_pretend_that_somebody_outside_told_it_to_end(binary: Path) -> None:
    number = {"x86_64": 129, "aarch64": 138}[platform.machine()]
    end = run(binary, describe(python(PRETENDS.format(number=number))))
    assert (end.told.status, end.told.told_to_end) == (0, None)


def test_the_kill_signal_ends_everything_and_is_reported(binary: Path) -> None:
    with Pid1(binary) as init:
        init.start(describe(sh(f"trap '' TERM HUP; {ORPHAN.format('sleep 60; sleep 60')} echo up; sleep 60; sleep 60")))
        init.read_until(b"up\n")
        init.signal(signal.SIGTERM)
        init.signal(KILL_SIGNAL)
        end = init.finish()
    assert end.told.status == signal.SIGKILL
    assert end.code == 128 + signal.SIGKILL


def test_the_kill_signal_reaches_a_stopped_job(binary: Path) -> None:
    with Pid1(binary) as init:
        init.start(describe(sh("echo up; kill -STOP -1; kill -STOP $$")))
        init.read_until(b"up\n")
        init.signal(KILL_SIGNAL)
        assert init.finish().told.status == signal.SIGKILL


STORM = """
import os, signal
for number in (1, 2, 3, 10, 15):
    signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        break
os.write(1, b"up\\n")
kill = os.kill
while True:
    kill(1, 1)
    kill(1, 2)
    kill(1, 3)
    kill(1, 10)
"""


def test_the_kill_signal_gets_through_a_storm(binary: Path) -> None:
    with Pid1(binary) as init:
        init.start(describe(python(STORM)))
        init.read_until(b"up\n" * 4)
        for number in (signal.SIGTERM, signal.SIGUSR1, *range(34, 40), *range(41, 65), KILL_SIGNAL):
            init.signal(number)
        assert init.finish().told.status == signal.SIGKILL


def test_the_kill_signal_comes_before_those_that_wait_with_it(binary: Path) -> None:
    with Pid1(binary) as init:
        init.start(describe(sh("echo up; sleep 60; sleep 60")))
        init.read_until(b"up\n")
        init.signal(signal.SIGSTOP)
        eventually(lambda: "State:\tT" in Path(f"/proc/{init.pid}/status").read_text())
        for number in (signal.SIGHUP, signal.SIGTERM, KILL_SIGNAL, signal.SIGCONT):
            init.signal(number)
        assert init.finish().told.status == signal.SIGKILL


def test_a_job_ends_in_the_midst_of_a_storm(binary: Path) -> None:
    storm = "trap '' HUP INT; while :; do kill -HUP 1; kill -INT 1; done"
    end = run(binary, describe(sh(f"trap '' HUP INT; ({storm}) & ({storm}) & sleep 0.2; exit 5")))
    assert end.told.status == 5 << 8


def test_a_signal_before_the_job_is_kept_for_it(binary: Path) -> None:
    job = describe(sh("sleep 60"))
    with Pid1(binary) as init:
        init.expect(job)
        init.send_alone(job.encode()[:4])
        init.signal(signal.SIGTERM)
        init.send(job.encode()[4:])
        assert init.finish().told.status == signal.SIGTERM


@pytest.mark.parametrize(
    "attack",
    [
        "kill -KILL 1; kill -STOP 1; kill -SEGV 1; kill -ABRT 1; kill -ILL 1; kill -ALRM 1",
        "kill -KILL -1",
        "kill -STOP -1; kill -CONT -1",
        "i=32; while [ $i -lt 64 ]; do i=$((i + 1)); [ $i = 40 ] || kill -$i 1; done",
    ],
)
def test_the_job_cannot_kill_the_init(binary: Path, attack: str) -> None:
    end = run(binary, describe(sh(f"sleep 60 & {attack}; exit 4")))
    assert end.told.status == 4 << 8


# ---- what the job leaves behind


def test_orphans_are_dead_before_the_report(binary: Path) -> None:
    flood = ORPHAN.format("while :; do echo x; done") * 4
    waits = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
os.write(2, b"ready\\n")
signal.sigwait({signal.SIGHUP})
"""
    with Pid1(binary) as init:
        init.start(describe((*sh(f'{flood} exec "$@"'), "sh", *python(waits + FILL))))
        init.read_until(b"ready\n", stderr=True)
        init.read_until(b"x\n")
        # Orphans have written, and are deaf to this: only now is the rest of the pipe filled.
        init.signal(signal.SIGHUP)
        init.read_until(b"full\n", stderr=True)
        # The pipe is full, so the init cannot end before it is read: what is gone was killed by it.
        eventually(lambda: not init.job_processes)
        assert not init.over
        end = init.finish()
    assert end.told.status == 5 << 8
    # Nothing follows the report: the scanner passes on as the job's own what comes behind it.
    assert set(end.stdout) == set(b"x\n")


def test_orphans_that_go_on_forking_are_caught(binary: Path) -> None:
    forks = ORPHAN.format("while :; do (sleep 0.01 &); done")
    assert run(binary, describe(sh(f"{forks * 3} sleep 0.2; exit 7"))).told.status == 7 << 8


def test_thousands_of_zombies_are_reaped(binary: Path) -> None:
    code = """
import os
if os.fork() == 0:
    for _ in range(3000):
        if os.fork() == 0:
            os._exit(0)
    os._exit(0)
os.wait()
while any(name.isdigit() and int(name) > 2 for name in os.listdir("/proc")):
    os.sched_yield()
print("reaped")
"""
    end = run(binary, describe(python(code)))
    assert end.stdout == b"reaped\n"
    assert end.told.status == 0


def test_zombies_that_nobody_reaped_are_gone(binary: Path) -> None:
    code = "import os\nfor _ in range(1000):\n  if os.fork() == 0: os._exit(0)\nos.kill(os.getpid(), 9)"
    assert run(binary, describe(python(code))).told.status == signal.SIGKILL


WAIT_FOR_GUEST = "echo up; while ! grep -q gues[t] /proc/*/cmdline; do :; done; exit 2"


def guest(init: Pid1) -> subprocess.Popen[bytes]:
    """A process that enters the container from outside, as `docker exec` makes them: it is no child of the init."""
    enter = ["nsenter", "--target", str(init.pid), "--pid", *([] if IS_ROOT else ["--user", "--preserve-credentials"])]
    return subprocess.Popen([*enter, "sh", "-c", "sleep 60; : guest"])


def test_a_process_that_entered_from_outside_is_killed_too(binary: Path) -> None:
    with Pid1(binary) as init:
        init.start(describe(sh(WAIT_FOR_GUEST)))
        init.read_until(b"up\n")
        with guest(init) as entered:
            end = init.finish()
            assert entered.wait(LIMIT) in {-signal.SIGKILL, 128 + signal.SIGKILL}
    assert end.told.status == 2 << 8


def leashed(init: Pid1, script: str) -> None:
    """Hand a job over that has no input, and read until all is told; the init's own input goes on."""
    job = replace(describe(sh(script)), leashed=True)
    init.expect(job)
    init.send(job.encode())
    init.read_report()


def test_a_leashed_init_stays_until_its_input_ends_which_its_job_does_not_see(binary: Path) -> None:
    with Pid1(binary) as init:
        leashed(init, "cat; readlink /proc/self/fd/0; exit 3")
        init.send_alone(b"still there?")
        assert init.job_processes == []
        init.stdin.close()
        end = init.finish()
    assert (end.code, end.stdout, end.told.status) == (3, b"/dev/null\n", 3 << 8)


@pytest.mark.parametrize("number", [signal.SIGTERM, KILL_SIGNAL], ids=["term", "kill"])
def test_a_leashed_init_that_has_told_all_leaves_at_a_signal(folder: Path, number: int) -> None:
    build(patient := folder / f"patient-{number}", extra=("-DSTAY_MS=600000",))
    with Pid1(patient) as init:
        leashed(init, "exit 4")
        init.signal(number)
        assert init.finish().code == 4


def test_a_leashed_init_whose_job_was_told_to_end_from_outside_does_not_stay(folder: Path) -> None:
    build(patient := folder / "told", extra=("-DSTAY_MS=600000",))
    with Pid1(patient) as init:
        job = replace(describe(sh("echo up; exec sleep 1000")), leashed=True)
        init.expect(job)
        init.send(job.encode())
        init.read_until(b"up")
        init.signal(signal.SIGTERM)
        assert init.finish().told.status == signal.SIGTERM


def test_a_leashed_init_stays_no_longer_than_a_while(folder: Path) -> None:
    build(impatient := folder / "brief", extra=("-DSTAY_MS=300",))
    with Pid1(impatient) as init:
        leashed(init, "exit 5")
        assert init.finish().code == 5


def test_what_cannot_be_killed_is_not_reported_dead(folder: Path) -> None:
    """Root's process among another user's. Where the tests have but one user, the init may kill it, and reports."""
    impatient = folder / "impatient"
    build(impatient, extra=("-DGIVE_UP_MS=300",))
    with Pid1(impatient, wrap=AS_NOBODY) as init:
        init.start(describe(sh(WAIT_FOR_GUEST)))
        init.read_until(b"up\n")
        with guest(init):
            end = init.finish()
    assert end.code == 2
    assert end.complete is not IS_ROOT


# ---- pipes


@pytest.mark.parametrize("prelude", ["", "import os; os.set_blocking(1, False); os.set_blocking(2, False)"])
def test_a_reader_that_pauses_gets_everything(binary: Path, prelude: str) -> None:
    with Pid1(binary) as init:
        init.start(describe(python(prelude + FILL)))
        init.read_until(b"full\n", stderr=True)
        eventually(lambda: not init.job_processes)
        assert not init.over
        end = init.finish()
    count = int(end.stderr.split()[0])
    assert count > 4096
    assert end.stdout == b"x" * count
    assert end.told.status == 5 << 8


def test_blocked_on_output_only_the_job_waits(binary: Path) -> None:
    with Pid1(binary) as init:
        init.start(describe(python(FILL.replace("os._exit(5)", "os.write(1, b'more')"))))
        init.read_until(b"full\n", stderr=True)
        init.signal(KILL_SIGNAL)
        eventually(lambda: not init.job_processes)
        assert init.finish().told.status == signal.SIGKILL


def test_a_job_may_close_its_output(binary: Path) -> None:
    end = run(binary, describe(sh("echo last; exec >&- 2>&-; exit 3")))
    assert (end.stdout, end.told.status) == (b"last\n", 3 << 8)


@pytest.mark.parametrize(("ignore", "code"), [("", 128 + signal.SIGPIPE), ("trap '' PIPE;", 6)])
def test_readers_that_went_away_are_survived(binary: Path, ignore: str, code: int) -> None:
    with Pid1(binary) as init:
        job = describe(sh(f"{ignore} echo up; read line; echo x; echo x >&2; exit 6"))
        init.expect(job)
        init.send(job.encode())
        init.read_until(b"up\n")
        init.stdout.close()
        init.stderr.close()
        init.send(b"go\n")
        assert init.finish().code == code


def test_packets_asynchronous_signals_and_small_pipes(binary: Path) -> None:
    code = """
import fcntl, os, signal
for fd in (1, 2):
    fcntl.fcntl(fd, fcntl.F_SETOWN, 1)
    fcntl.fcntl(fd, 10, signal.SIGKILL)  # F_SETSIG
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK | os.O_DIRECT | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
os.write(1, b"text")
"""
    end = run(binary, describe(python(code)))
    assert end.stdout == b"text"
    assert end.told.status == 0


# ---- secrets and counters


SNOOP = """
import ctypes, os
def attempt(what, *args, **kw):
    try:
        got = what(*args, **kw)
    except OSError as error:
        return
    print("got", what, args, got)
for name in ("mem", "environ", "maps", "auxv", "fd/0", "fd/1", "fd/2", "exe", "cwd", "root/etc/passwd"):
    attempt(open, f"/proc/1/{name}", "rb")
attempt(os.listdir, "/proc/1/map_files")
attempt(os.readlink, "/proc/1/fd/1")
libc = ctypes.CDLL(None, use_errno=True)
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
here, there = Piece(ctypes.addressof(ctypes.create_string_buffer(16)), 16), Piece(0x400000, 16)
if libc.process_vm_readv(1, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) != -1:
    print("process_vm_readv")
for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
    if libc.ptrace(request, 1, 0, 0) != -1:
        print("ptrace", request)
pidfd = os.pidfd_open(1)
if libc.syscall(438, pidfd, 1, 0) != -1:  # pidfd_getfd
    print("pidfd_getfd")
print("tried")
"""


def test_the_job_cannot_look_into_the_init(binary: Path) -> None:
    end = run(binary, describe(python(SNOOP)), wrap=WITHOUT_CAPABILITIES)
    assert (end.stdout, end.stderr) == (b"tried\n", b"")


def test_a_user_cannot_look_into_the_init(binary: Path) -> None:
    script = "for f in mem environ maps fd/1 exe; do cat /proc/1/$f && echo got $f; done;"
    script += "readlink /proc/1/fd/1; echo tried"
    end = run(binary, describe(sh(script)), wrap=AS_NOBODY)
    assert end.stdout == b"tried\n"


def test_the_start_is_told_before_the_jobs_first_byte(binary: Path) -> None:
    job = describe(("echo", "first"))
    end = run(binary, job)
    assert end.raw_stdout.startswith(job.nonce[:16])
    assert end.raw_stdout[32:39] == b"\nfirst\n"
    assert end.raw_stdout[39:55] == job.nonce[16:]


def test_what_the_init_says_is_text_that_ends_its_line(binary: Path) -> None:
    nonce = b"0123456789abcdefghijklmnopqrstuv"
    job = replace(describe(sh("printf out; printf err >&2"), places=("/",)), nonce=nonce)
    end = run(binary, job)
    start, last = end.raw_stdout.decode("ascii").splitlines()
    assert start.startswith("0123456789abcdef")
    assert last.startswith("outghijklmnopqrstuv")
    assert end.raw_stdout.endswith(b"\n")
    assert (end.stdout, end.stderr) == (b"out", b"err")


def test_the_counters_of_this_machine(binary: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    began = time.monotonic()
    report = run(binary, describe(python(burn))).told
    most = (time.monotonic() - began) * (os.cpu_count() or 1) + 1  # of this machine, whoever else is busy on it
    has_cpu = any((CGROUP / name).exists() for name in ("cpu.stat", "cpuacct/cpuacct.usage"))
    has_memory = any((CGROUP / name).exists() for name in ("memory.peak", "memory/memory.max_usage_in_bytes"))
    has_oom = any((CGROUP / name).exists() for name in ("memory.events", "memory/memory.oom_control"))
    assert (report.cpu_seconds is not None) == has_cpu
    assert (report.memory_peak_bytes is not None) == has_memory
    assert (report.oom_kills is not None) == has_oom
    assert report.cpu_seconds is None or 0.2 <= report.cpu_seconds < most
    assert report.memory_peak_bytes is None or report.memory_peak_bytes > 1 << 20


V2 = {
    "cpu.stat": "usage_usec {cpu_us}\nuser_usec 5\nsystem_usec 7\n",
    "memory.events": "low 0\nhigh 9\nmax 9\noom 9\noom_group_kill 9\noom_kill {oom}\n",
    "memory.peak": "123456\n",
}
V1 = {
    "cpuacct/cpuacct.usage": "{cpu_us}000\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill {oom}\n",
    "memory/memory.max_usage_in_bytes": "123456\n",
}
V1_SWAP = V1 | {"memory/memory.memsw.max_usage_in_bytes": "123456\n", "memory/memory.max_usage_in_bytes": "99\n"}
V1_TOGETHER = {"cpu,cpuacct/cpuacct.usage": "{cpu_us}000\n"}


def counters(folder: Path, files: dict[str, str], first: str = "") -> Report:
    """What is reported when the files change while the job runs; it runs this script first."""
    root = Path(tempfile.mkdtemp(dir=folder))
    build(root / "init", extra=(f'-DCGROUP_ROOT="{root}"',))
    changes = [first]
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text.format(cpu_us=1_000_000, oom=2))
        changes.append(f"cat > '{root / name}' <<'END'\n{text.format(cpu_us=3_500_000, oom=5)}END\n")
    return run(root / "init", describe(sh("".join(changes)))).told


@pytest.mark.parametrize("files", [V2, V1, V1_SWAP], ids=["v2", "v1", "v1-swap"])
def test_counters_of_either_version(folder: Path, files: dict[str, str]) -> None:
    report = counters(folder, files)
    assert (report.cpu_seconds, report.memory_peak_bytes, report.oom_kills) == (2.5, 123456, 3)


def test_counters_of_an_init_that_the_job_lets_open_nothing(folder: Path) -> None:
    report = counters(folder, V2, "prlimit --pid 1 --nofile=0:0\n")
    assert (report.cpu_seconds, report.memory_peak_bytes, report.oom_kills) == (2.5, 123456, 3)


def test_counters_where_cpu_and_accounting_are_mounted_together(folder: Path) -> None:
    report = counters(folder, V1_TOGETHER)
    assert (report.cpu_seconds, report.memory_peak_bytes, report.oom_kills) == (2.5, None, None)


@pytest.mark.parametrize("text", ["", "\n", "max\n", "usage_usec\n", "usage_usec x\n", "oom_kill", "x" * 9000])
def test_counters_that_make_no_sense_are_unknown(folder: Path, text: str) -> None:
    report = counters(folder, dict.fromkeys(V2, text))
    assert (report.cpu_seconds, report.memory_peak_bytes, report.oom_kills) == (None, None, None)


# ---- places


def test_places_are_measured_before_the_rest_is_killed(binary: Path, folder: Path) -> None:
    place = folder / "place"
    place.mkdir()
    script = f"""
mount -t tmpfs -o size=1m,nr_inodes=50 tmpfs {place}
(exec 3>{place}/gone; rm {place}/gone; head -c 700000 /dev/zero >&3; : >{place}/ready; exec sleep 60) &
while [ ! -e {place}/ready ]; do :; done
"""
    end = run(binary, describe(sh(script), places=(str(place), "/nope")))
    (measured,) = end.told.places
    assert measured.path == str(place)
    assert (measured.bytes_total, measured.inodes_total) == (1 << 20, 50)
    assert measured.bytes_free < (1 << 20) - 700_000
    assert measured.inodes_free < 50


def test_a_full_place_is_reported_full(binary: Path, folder: Path) -> None:
    place = folder / "full"
    place.mkdir()
    script = f"mount -t tmpfs -o size=1m tmpfs {place}; head -c 2000000 /dev/zero > {place}/file"
    (measured,) = run(binary, describe(sh(script), places=(str(place),))).told.places
    assert measured.bytes_free == 0


# ---- the build


@pytest.mark.parametrize("machine", [machine for machine in MACHINES if compiler(machine)])
def test_it_compiles_without_a_warning_and_stays_small(tmp_path: Path, machine: str) -> None:
    target = tmp_path / "init"
    build(target, machine=machine, extra=("-Werror", "-Wconversion", "-Wshadow"))
    assert target.stat().st_size < {"x86_64": 10_000, "aarch64": 70_000}[machine]  # pages may be of 64 KiB there
    assert os.access(target, os.X_OK)
    assert platform.machine() in MACHINES
