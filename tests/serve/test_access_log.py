"""The access log: lines of several loops, whole, in one file or pipe, whatever becomes of that."""

import asyncio
import contextlib
import errno
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from polyloop._core import _prims
from polyloop.serve import _access_log
from polyloop.serve._access_log import AccessLog, LoopLog
from polyloop.testing import TestLoop

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"
UVICORN = '%s - "%s %s HTTP/%s" %d'


class Timers:
    """The one method of a loop that the log uses; the test lets the time pass."""

    def __init__(self) -> None:
        self._set: list[tuple[float, Callable[[], object]]] = []

    def call_later(self, delay: float, callback: Callable[[], object]) -> "Timer":
        entry = (delay, callback)
        self._set.append(entry)
        return Timer(lambda: self._set.remove(entry))

    def fire(self) -> None:
        due, self._set = self._set, []
        for _, callback in due:
            callback()

    @property
    def delays(self) -> list[float]:
        return [delay for delay, _ in self._set]


class Timer:
    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


def loop_log(log: AccessLog) -> tuple[LoopLog, Timers]:
    timers = Timers()
    return log.for_loop(cast("asyncio.AbstractEventLoop", timers)), timers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def log(file: Path) -> Iterator[AccessLog]:
    log = AccessLog(file)
    yield log
    log.close()


@pytest.fixture
def pipe_log(monkeypatch: pytest.MonkeyPatch, log: AccessLog) -> Iterator[tuple[AccessLog, int]]:
    """A log whose descriptor is a pipe, and the end where it is read; small, so that it is soon full."""
    reader, writer = os.pipe()
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    monkeypatch.setattr(_access_log, "_LAST_WAIT", 0.01)
    os.close(log._fd)
    log._fd, log._poll = writer, _access_log._poll_of(writer)
    os.set_blocking(reader, False)
    yield log, reader
    log.close()
    with contextlib.suppress(OSError):
        os.close(reader)


def read_all(fd: int) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(fd, 2**16):
            found += piece
    return found


def test_a_line_has_the_time_and_the_text_of_uvicorn(log: AccessLog, file: Path) -> None:
    """Date, time, milliseconds and offset, then what uvicorn's own log says."""
    mine, timers = loop_log(log)
    mine.info(UVICORN, "127.0.0.1:5", "GET", "/a?b=c", "1.1", 200)
    timers.fire()
    assert re.fullmatch(STAMP + r' 127\.0\.0\.1:5 - "GET /a\?b=c HTTP/1\.1" 200\n', file.read_text())


@pytest.mark.parametrize(
    ("offset", "zone"), [(0, "+00:00"), (7200, "+02:00"), (-12600, "-03:30"), (20700, "+05:45"), (-1800, "-00:30")]
)
def test_the_offset_has_a_sign_hours_and_minutes(
    monkeypatch: pytest.MonkeyPatch, log: AccessLog, file: Path, offset: int, zone: str
) -> None:
    """Also west of Greenwich, and where it is no whole hour."""
    from types import SimpleNamespace

    moment = SimpleNamespace(tm_year=2026, tm_mon=1, tm_mday=2, tm_hour=3, tm_min=4, tm_sec=5, tm_gmtoff=offset)
    monkeypatch.setattr(_prims, "local_time", lambda _second: moment)
    monkeypatch.setattr(_prims, "wall_time", lambda: 1000.0625)
    mine, _ = loop_log(log)
    mine.info("x")
    mine.flush()
    assert file.read_text() == f"2026-01-02 03:04:05.062{zone} x\n"


def test_the_date_is_computed_once_a_second(monkeypatch: pytest.MonkeyPatch, log: AccessLog, file: Path) -> None:
    """And again when the second is another."""
    seconds: list[int] = []
    real = _prims.local_time

    def local_time(second: int) -> Any:
        seconds.append(second)
        return real(second)

    clock = iter([10.0, 10.5, 10.999, 11.0])
    monkeypatch.setattr(_prims, "local_time", local_time)
    monkeypatch.setattr(_prims, "wall_time", lambda: next(clock))
    mine, _ = loop_log(log)
    for number in range(4):
        mine.info("%d", number)
    mine.close()
    assert seconds == [10, 11]
    assert [line[20:23] for line in file.read_text().splitlines()] == ["000", "500", "999", "000"]


@pytest.mark.parametrize("evil", ["a\nb", "a\rb", "\x1b[31m", "a\x85b", "a\u2028b", "\x00", "\ud800"])
def test_nothing_in_a_line_can_end_it_or_act_on_a_terminal(log: AccessLog, file: Path, evil: str) -> None:
    """A header that names the client is not looked at by anyone before it is here."""
    mine, _ = loop_log(log)
    mine.info(UVICORN, evil, "GET", "/", "1.1", 200)
    mine.close()
    text = file.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert text.count("\\") == 1 + evil.count("\\")


def test_letters_of_all_languages_stay_readable(log: AccessLog, file: Path) -> None:
    """Only what cannot be printed is escaped."""
    mine, _ = loop_log(log)
    mine.info("%s", "Füße 猫")
    mine.close()
    assert file.read_text(encoding="utf-8").endswith(" Füße 猫\n")


def test_arguments_that_do_not_fit_are_shown_as_they_are(log: AccessLog, file: Path) -> None:
    """The request that is logged is not to blame."""
    mine, _ = loop_log(log)
    mine.info("%d and %d", "one")
    mine.close()
    assert file.read_text().endswith(" '%d and %d' ('one',)\n")


def test_aiohttp_logs_through_it(log: AccessLog, file: Path) -> None:
    """Its access logger asks isEnabledFor, and gives the text whole, with percent signs in it, and an ``extra``."""
    mine, _ = loop_log(log)
    assert mine.isEnabledFor(logging.INFO)
    assert mine.hasHandlers()
    mine.info('"GET /100%25 HTTP/1.1"', extra={"remote_address": "::1"})
    mine.close()
    assert file.read_text().endswith(' "GET /100%25 HTTP/1.1"\n')


def test_lines_are_written_after_a_moment_in_one_call(
    monkeypatch: pytest.MonkeyPatch, log: AccessLog, file: Path
) -> None:
    """One timer for all lines until it fires."""
    writes: list[int] = []
    real = os.write

    def write(fd: int, data: Any) -> int:
        writes.append(len(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    mine, timers = loop_log(log)
    mine.info("one")
    mine.info("two")
    assert timers.delays == [_access_log.DELAY]
    assert file.read_text() == ""
    timers.fire()
    assert len(writes) == 1
    assert timers.delays == []
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["one", "two"]


def test_a_full_buffer_is_written_at_once(log: AccessLog, file: Path) -> None:
    """Without waiting for the timer."""
    mine, _ = loop_log(log)
    while not file.stat().st_size:
        mine.info("%s", "x" * 1000)
    assert _access_log.FULL <= file.stat().st_size < _access_log.FULL + 2000


def test_a_loop_that_ends_writes_and_sets_no_timer(log: AccessLog, file: Path) -> None:
    """close() is the last flush."""
    mine, timers = loop_log(log)
    mine.info("last")
    mine.close()
    assert timers.delays == []
    assert file.read_text().endswith(" last\n")


def test_the_end_of_the_log_writes_what_loops_left(log: AccessLog, file: Path) -> None:
    """A loop that was left behind did not flush."""
    mine, _ = loop_log(log)
    mine.info("left")
    log.close()
    log.close()
    assert file.read_text().endswith(" left\n")
    mine.info("too late")
    mine.flush()
    assert mine.dropped == log.dropped == 1
    assert file.read_text().endswith(" left\n")


def test_a_write_that_was_short_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, log: AccessLog, file: Path
) -> None:
    """Nothing is written twice or left out."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    mine, _ = loop_log(log)
    mine.info("one")
    mine.info("two")
    mine.flush()
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["one", "two"]


def test_a_line_that_was_begun_is_ended_by_the_loop_that_writes_next(
    monkeypatch: pytest.MonkeyPatch, log: AccessLog, file: Path
) -> None:
    """The disk was full in the middle of a line; a line of another loop must not cut it up."""
    real = os.write
    room = [40]

    def write(fd: int, data: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(fd, bytes(data)[: room[0]])
        room[0] -= count
        return count

    left, left_timers = loop_log(log)
    right, _ = loop_log(log)
    monkeypatch.setattr(os, "write", write)
    left.info("first")
    left.info("second")
    left.info("third")
    left.flush()
    assert file.stat().st_size == 40
    room[0] = 10_000
    right.info("other")
    right.flush()
    left_timers.fire()
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["first", "second", "other", "third"]


def test_what_cannot_be_written_is_kept_up_to_a_bound_then_dropped_and_told_once(
    monkeypatch: pytest.MonkeyPatch, log: AccessLog, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk costs lines, never memory or requests."""
    monkeypatch.setattr(_access_log, "MOST", 3000)
    real = os.write
    full = True

    def write(fd: int, data: Any) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    mine, timers = loop_log(log)
    for number in range(100):
        mine.info("%s %d", "x" * 100, number)
        timers.fire()
    kept = 100 - mine.dropped
    assert 15 < kept < 30
    assert [record.getMessage().partition(str(file))[2] for record in caplog.records] == [
        " cannot be written ([Errno 28] No space left on device); lines are dropped until it can"
    ]
    full = False
    timers.fire()
    assert [int(line.split()[-1]) for line in file.read_text().splitlines()] == list(range(kept))
    assert caplog.records[1].getMessage().endswith(f"is written again; {100 - kept} lines have been dropped until now")
    assert timers.delays == []


def test_a_reader_that_stalls_holds_up_nobody(pipe_log: tuple[AccessLog, int]) -> None:
    """The pipe is a blocking one, as standard output is; what does not fit is written when there is room."""
    log, reader = pipe_log
    mine, timers = loop_log(log)
    for number in range(1000):
        mine.info("%s %d", "x" * 100, number)
    mine.flush()
    found = b""
    for _ in range(1000):
        found += read_all(reader)
        if not timers.delays:
            break
        timers.fire()
    assert [int(line.split()[-1]) for line in found.decode().splitlines()] == list(range(1000))
    assert mine.dropped == 0


def test_a_pipe_is_written_to_in_whole_lines(monkeypatch: pytest.MonkeyPatch, pipe_log: tuple[AccessLog, int]) -> None:
    """No more than PIPE_BUF at once, so that the lines of other processes come between ours, not into them."""
    log, _ = pipe_log
    writes: list[bytes] = []

    def write(_fd: int, data: Any) -> int:
        writes.append(bytes(data))
        return len(data)

    monkeypatch.setattr(os, "write", write)
    mine, _ = loop_log(log)
    for number in range(300):
        mine.info("%s %d", "x" * (number % 90), number)
    mine.flush()
    assert len(writes) > 3
    assert all(data.endswith(b"\n") and len(data) <= _access_log._PIECE for data in writes)


def test_a_line_longer_than_a_pipe_takes_at_once_is_written_in_pieces(pipe_log: tuple[AccessLog, int]) -> None:
    """And a line of another loop does not come between them."""
    log, reader = pipe_log
    left, left_timers = loop_log(log)
    right, right_timers = loop_log(log)
    left.info("%s", "l" * 3 * _access_log._PIECE)
    left.info("left")
    left.flush()
    right.info("right")
    found = b""
    while left_timers.delays or right_timers.delays:
        found += read_all(reader)
        right_timers.fire()
        left_timers.fire()
    found += read_all(reader)
    assert [line.split()[-1].strip("l") for line in found.decode().splitlines()] == ["", "right", "eft"]


def test_a_reader_that_has_gone_costs_lines_only(
    monkeypatch: pytest.MonkeyPatch, pipe_log: tuple[AccessLog, int], caplog: pytest.LogCaptureFixture
) -> None:
    """EPIPE is no error of a request, and closing the log says what was lost."""
    monkeypatch.setattr(_access_log, "MOST", 1000)
    log, reader = pipe_log
    os.close(reader)
    mine, timers = loop_log(log)
    for _ in range(100):
        mine.info("line")
    timers.fire()
    log.close()
    assert log.dropped == 100
    assert [record.getMessage().partition("access.log")[2] for record in caplog.records] == [
        " cannot be written ([Errno 32] Broken pipe); lines are dropped until it can",
        " has lost 100 lines",
    ]


def test_standard_output_is_written_to_and_stays_open(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a file, and after close()."""
    log = AccessLog()
    mine, _ = loop_log(log)
    mine.info("out")
    mine.close()
    log.reopen()
    log.close()
    os.write(1, b"still open\n")
    assert re.fullmatch(STAMP + " out\nstill open\n", capfd.readouterr().out)


#: Makes a log for standard output where descriptor 1 is something else by now.
CLOSED = """
import asyncio, logging, os, socket, sys
how = sys.argv[1]
if how == "closed":
    sys.stdout.close()
if how != "never there":
    os.close(1)
mine = other = None
if how != "closed below":
    mine, other = socket.socketpair()
    assert 1 in (mine.fileno(), other.fileno())
from polyloop.serve._access_log import AccessLog
logging.basicConfig()
log = AccessLog()

async def main():
    line = log.for_loop(asyncio.get_running_loop())
    line.info("secret")
    line.close()
    log.reopen()
    log.close()
    print("dropped", log.dropped, file=sys.stderr)

asyncio.run(main())
for sock in (mine, other):
    if sock is not None:
        sock.setblocking(False)
        try:
            print("received", sock.recv(100), file=sys.stderr)
        except BlockingIOError:
            pass
"""


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor by the shell")
@pytest.mark.parametrize("how", ["never there", "closed", "closed below"])
def test_without_a_standard_output_there_is_no_log(how: str) -> None:
    """It is told once; nothing is written into what has the descriptor then."""
    command = [sys.executable, "-c", CLOSED, how]
    if how == "never there":
        command = ["/bin/sh", "-c", 'exec "$@" <&- >&-', "sh", *command]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stderr.splitlines() == [
        "WARNING:polyloop.serve:polyloop: standard output is closed, so there is no access log; name a file for it",
        "dropped 1",
    ]


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_the_file_is_not_for_everybody(file: Path) -> None:
    """It holds addresses and queries."""
    before = os.umask(0)
    try:
        AccessLog(file).close()
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_line_that_comes_while_the_log_is_closed_is_counted(log: AccessLog, file: Path) -> None:
    """Of a stuck loop that goes on in the middle of ``info``, when the list is taken from it."""
    mine, timers = loop_log(log)
    mine.info("before")
    lines = mine._lines
    log.close()
    lines.append("too late\n")
    timers.fire()
    assert mine.dropped == log.dropped == 1
    assert file.read_text().endswith(" before\n")


def test_the_file_is_opened_anew_after_it_was_moved_away(log: AccessLog, file: Path) -> None:
    """logrotate: what was flushed before is in the old file, what comes later in the new one."""
    mine, _ = loop_log(log)
    mine.info("old")
    mine.flush()
    moved = file.rename(file.with_suffix(".1"))
    mine.info("new")
    log.reopen()
    mine.flush()
    assert moved.read_text().endswith(" old\n")
    assert file.read_text().endswith(" new\n")
    assert moved.read_text().count("\n") == file.read_text().count("\n") == 1


def test_reopening_while_somebody_writes_happens_before_the_next_write(log: AccessLog, file: Path) -> None:
    """A signal handler that interrupts a flush on its own thread must not wait for it."""
    mine, _ = loop_log(log)
    mine.info("line")
    with log._lock:
        moved = file.rename(file.with_suffix(".1"))
        log.reopen()
        mine.flush()  # never waits either
        assert not file.exists()
    mine.flush()
    assert file.read_text().endswith(" line\n")
    assert moved.read_text() == ""


def test_a_file_that_cannot_be_opened_anew_is_told_and_the_old_one_kept(
    log: AccessLog, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A rotation with wrong permissions loses nothing."""
    mine, _ = loop_log(log)
    file.parent.rename(file.parent.with_suffix(".moved"))
    log.reopen()
    mine.info("kept")
    mine.close()
    file.parent.with_suffix(".moved").rename(file.parent)
    assert file.read_text().endswith(" kept\n")
    assert caplog.records[0].getMessage() == (
        f"polyloop: cannot reopen the access log {file} ([Errno 2] No such file or directory: '{file}');"
        " the old file is kept"
    )


def test_reopening_a_closed_log_does_nothing(log: AccessLog, file: Path) -> None:
    """A SIGHUP while the process ends."""
    log.close()
    file.unlink()
    log.reopen()
    assert not file.exists()


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    """Not one of the first request."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        AccessLog(tmp_path / "nowhere" / "access.log")


def test_lines_of_all_loops_arrive_whole_and_once_while_the_file_is_rotated(
    log: AccessLog, file: Path, loops: Callable[[int], list[TestLoop]]
) -> None:
    """Real loops and timers, and a thread that moves the file away again and again."""
    lines = 3000
    done = threading.Event()

    async def talk(number: int) -> None:
        mine = log.for_loop(asyncio.get_running_loop())
        for line in range(lines):
            mine.info("%d %d %s", number, line, "x" * 50)
            if line % 50 == 0:
                await asyncio.sleep(0)
        mine.close()

    def rotate() -> None:
        count = 0
        while not done.is_set():
            file.rename(file.with_suffix(f".{(count := count + 1)}"))
            log.reopen()
            while not file.exists() and not done.is_set():
                pass

    rotator = threading.Thread(target=rotate)
    rotator.start()
    talkers = [loop.spawn(talk, number) for number, loop in enumerate(loops(3))]
    for talker in talkers:
        talker.result(timeout=60)
    done.set()
    rotator.join()
    log.close()
    assert log.dropped == 0
    found = sorted(
        tuple(map(int, line.split()[2:4])) for path in file.parent.iterdir() for line in path.read_text().splitlines()
    )
    assert found == [(number, line) for number in range(3) for line in range(lines)]


def test_loops_flush_by_their_own_timers(log: AccessLog, file: Path, left: TestLoop) -> None:
    """Nobody calls flush."""

    async def talk() -> None:
        log.for_loop(asyncio.get_running_loop()).info("by itself")
        async with asyncio.timeout(30):
            while not file.stat().st_size:
                await asyncio.sleep(_access_log.DELAY / 4)

    left.run(talk)
    assert file.read_text().endswith(" by itself\n")
