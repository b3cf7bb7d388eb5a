"""An access log for many loops: each formats and collects its own lines, and writes a batch of them at a time.

`logging` takes a lock and makes a system call for every line; with several loops they stand in line for it. Here a line
goes into a list of the loop's own. The list is written when it holds 64 KiB, or 0.2 s after its first line.

The descriptor is shared, and ``AccessLog._lock`` guards it: whoever writes, replaces or closes it holds that lock. A
loop never waits for the lock, nor for a reader that does not read: it tries once and keeps its lines until the next
flush. What a loop keeps is bounded; lines beyond that are dropped and counted.

Why a reader that stalls cannot hold up a loop: a regular file is always ready. To anything else (pipe, terminal, the
socket of journald) a loop writes at most ``PIPE_BUF`` bytes at a time, after ``poll`` has said that there is room; of a
pipe POSIX promises room for as many. Such a write is also not cut up by those of other processes on the same pipe.
(Another process that fills the pipe between the two calls makes this one write wait. The descriptor is not made
non-blocking, since that would change it for all who share it.)

What a line may hold: uvicorn quotes the path, and refuses a query with other than visible ASCII. But nobody looks at a
client's address that comes from a header, where h11 lets control characters pass. So every line is looked at here.

Measured (2 cores, 3.13.15t, uvicorn's line into a file; µs a line, one loop and two at once): 1.5 and 1.8 here, 13
and 34 with ``logging`` and a StreamHandler.
"""

import asyncio
import os
import select
import stat
import sys

from polyloop._core import _prims
from polyloop.serve._accepted import logger

#: Characters after which a loop writes at once. A guess: some 800 lines.
FULL = 2**16

#: Seconds from a loop's first line to its being written.
DELAY = 0.2

#: Characters that a loop keeps while they cannot be written; lines beyond that are dropped.
MOST = 2**20

#: Bytes that may be written to a pipe without waiting, once it is ready; 512 is what POSIX promises everywhere.
_PIECE: int = getattr(select, "PIPE_BUF", 512)

#: Seconds that a reader who does not read gets when the log is closed.
_LAST_WAIT = 0.5


class AccessLog:
    """Where the lines of all loops go.

    Args:
        target: A file that is appended to, or ``None`` for standard output. If that is closed, no log is kept: its
            descriptor may be anything by now.
    Raises:
        OSError: the file cannot be opened.
    Thread safety: any thread.
    """

    def __init__(self, target: str | os.PathLike[str] | None = None) -> None:
        self.path = None if target is None else os.path.abspath(target)
        self._lock = _prims.Lock()  # guards what follows, and every write; loops only try it
        fd = _stdout() if self.path is None else _open(self.path)
        self._fd = -1 if fd is None else fd
        self._poll = None if fd is None else _poll_of(fd)
        self._rest = b""  # of a line that was written in part: it comes first in the next write
        self._closed = fd is None
        self._warned = False  # lines are being dropped, and that was said
        self._logs: list[LoopLog] = []
        self._reopening = False  # set by any thread, taken back under the lock
        if fd is None:
            logger.warning("polyloop: standard output is closed, so there is no access log; name a file for it")

    def __repr__(self) -> str:
        return f"<AccessLog {self._name}{' closed' if self._closed else ''}>"

    @property
    def _name(self) -> str:
        return self.path or "stdout"

    def for_loop(self, loop: asyncio.AbstractEventLoop) -> "LoopLog":
        """The log of one loop; called, and used, on its thread."""
        log = LoopLog(self, loop)
        with self._lock:
            self._logs.append(log)
        return log

    @property
    def dropped(self) -> int:
        """Lines that could not be written; a snapshot."""
        return sum(log.dropped for log in list(self._logs))

    def reopen(self) -> None:
        """Open the file anew, since the old one has been moved away (logrotate); nothing for standard output.

        It happens at once, or where a write is in progress, before the next one. If the file cannot be opened, the old
        one is kept and the error logged.

        Thread safety: any thread; also a signal handler, since it never waits.
        """
        if self.path is None:
            return
        self._reopening = True
        if not self._lock.acquire(blocking=False):
            return  # whoever has it, or comes next, sees the mark
        try:
            failure = self._reopen_locked()
        finally:
            self._lock.release()
        self._tell(failure, None)

    def close(self) -> None:
        """Write what the loops still hold, and close the file. To be called when the loops have ended, or gave up.

        Standard output stays open. Lines that come later are dropped and counted.

        Thread safety: any thread. A reader of standard output that does not read is waited for, half a second.
        """
        with self._lock:
            if self._closed:
                return
            until = _prims.monotonic() + _LAST_WAIT
            for log in self._logs:
                log.give_up(self._write_locked(log.take(), until)[0])
            self._closed = True
            if self.path is not None:
                os.close(self._fd)
        if lost := self.dropped:
            logger.warning("polyloop: the access log %s has lost %d lines", self._name, lost)

    def flush(self, log: "LoopLog") -> None:
        """Write what ``log`` holds, as far as that is possible now. On the thread of its loop."""
        if not self._lock.acquire(blocking=False):
            return
        failure: OSError | None = None
        try:
            if self._reopening:
                failure = self._reopen_locked()
            data = log.take()
            if self._closed:
                log.give_up(data)
                return
            rest, error = self._write_locked(data)
            log.put_back(rest)
            news = self._news_locked(error, stuck=bool(rest) and log.full)
        finally:
            self._lock.release()
        self._tell(failure, news)

    # Under the lock

    def _reopen_locked(self) -> OSError | None:
        self._reopening = False
        if self._closed or self.path is None:
            return None
        try:
            fd = _open(self.path)
        except OSError as exc:
            return exc
        self._write_locked(b"")  # the rest of a line belongs to the old file
        self._rest = b""
        os.close(self._fd)
        self._fd = fd
        self._poll = _poll_of(fd)
        return None

    def _write_locked(self, data: bytes, until: float = 0) -> tuple[bytes, OSError | None]:
        """Write whole lines as far as that is possible now, or until then; return what is left, and what stopped it."""
        data = self._rest + data
        at, error = 0, None
        try:
            while at < len(data) and (count := self._put_locked(data, at, until)):
                at += count
        except OSError as exc:
            error = exc
        # A line that was begun is ended by whoever writes next, so that lines of other loops do not cut it up.
        end = len(self._rest)
        if at > 0:
            end = at if data[at - 1] == _NEWLINE else data.index(_NEWLINE, at) + 1
        self._rest = data[at:end]
        return data[end:], error

    def _put_locked(self, data: bytes, at: int, until: float) -> int:
        if self._poll is None:
            return os.write(self._fd, memoryview(data)[at:])
        patience = max(0.0, until - _prims.monotonic()) if until else 0
        if not self._poll.poll(1000 * patience):
            return 0
        return os.write(self._fd, data[at : _cut(data, at)])

    def _news_locked(self, error: OSError | None, *, stuck: bool) -> str | None:
        """What is to be said of lines that are lost: when that begins, and when it is over."""
        if self._warned == stuck:
            return None
        self._warned = stuck
        if stuck:
            return f"cannot be written ({error or 'nobody reads it'}); lines are dropped until it can"
        return f"is written again; {self.dropped} lines have been dropped until now"

    def _tell(self, failure: OSError | None, news: str | None) -> None:
        """Log what happened under the lock; after it."""
        if failure is not None:
            logger.error("polyloop: cannot reopen the access log %s (%s); the old file is kept", self._name, failure)
        if news is not None:
            logger.warning("polyloop: the access log %s %s", self._name, news)


class LoopLog:
    """The access log of one loop, in the shape of a ``logging.Logger`` as far as servers use one.

    Thread safety: the loop's thread alone, but for ``dropped``, and for what ``AccessLog.close`` does when the loop
    has ended or is stuck. A stuck loop may go on at that moment: so the list of lines stays the same one, and a line
    that comes too late is found in it, and counted, by the next flush. No method raises, whatever the arguments and
    the file.
    """

    def __init__(self, owner: AccessLog, loop: asyncio.AbstractEventLoop) -> None:
        self.dropped = 0
        self._owner = owner
        self._loop = loop
        self._lines: list[str] = []
        self._unsent = b""
        self._size = 0  # characters in _lines, and bytes in _unsent
        self._timer: asyncio.TimerHandle | None = None
        self._flush_at = FULL  # the size at which it is written without waiting for the timer
        self._second = -1
        self._date = self._zone = ""

    def __repr__(self) -> str:
        return f"<LoopLog of {self._owner!r}>"

    def info(self, message: object, *args: object, **_options: object) -> None:
        """Log a line: ``message % args`` after the time. What could end a line, or act on a terminal, is escaped."""
        if self._size >= MOST:
            self.dropped += 1
            return
        try:
            text = str(message) % args if args else str(message)
        except Exception:
            text = f"{message!r} {args!r}"
        if not text.isprintable():
            text = text.encode("unicode_escape").decode("ascii")
        now = _prims.wall_time()
        second = int(now)
        if second != self._second:
            self._set_second(second)
        line = f"{self._date}{int((now - second) * 1000):03d}{self._zone}{text}\n"
        self._lines.append(line)
        self._size += len(line)
        if self._timer is None:
            self._timer = self._loop.call_later(DELAY, self._on_timer)
        elif self._size >= self._flush_at:
            self.flush()

    def isEnabledFor(self, _level: int) -> bool:  # noqa: N802 - the name is logging's
        """Yes: every line is logged."""
        return True

    def hasHandlers(self) -> bool:  # noqa: N802
        """Yes."""
        return True

    def flush(self) -> None:
        """Write what there is, as far as that is possible without waiting."""
        if self._lines or self._unsent:
            self._owner.flush(self)
            self._flush_at = self._size + FULL

    def close(self) -> None:
        """Write what there is, since the loop ends. What cannot be written now is left to ``AccessLog.close``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush()

    def _on_timer(self) -> None:
        self._timer = None
        self.flush()
        if self._lines or self._unsent:
            self._timer = self._loop.call_later(DELAY, self._on_timer)

    def _set_second(self, second: int) -> None:
        moment = _prims.local_time(second)
        minutes = abs(moment.tm_gmtoff) // 60
        sign = "-" if moment.tm_gmtoff < 0 else "+"
        self._date = (
            f"{moment.tm_year}-{moment.tm_mon:02d}-{moment.tm_mday:02d} "
            f"{moment.tm_hour:02d}:{moment.tm_min:02d}:{moment.tm_sec:02d}."
        )
        self._zone = f"{sign}{minutes // 60:02d}:{minutes % 60:02d} "
        self._second = second

    # Called by the owner, under its lock

    def take(self) -> bytes:
        """All lines, which are then no longer here."""
        lines = self._lines.copy()
        del self._lines[: len(lines)]  # what another thread has added meanwhile stays
        data = self._unsent + "".join(lines).encode("utf-8", "backslashreplace")
        self._unsent = b""
        self._size = 0
        return data

    @property
    def full(self) -> bool:
        """Whether lines are dropped."""
        return self._size >= MOST

    def put_back(self, data: bytes) -> None:
        """Lines that could not be written now."""
        self._unsent = data
        self._size = len(data)

    def give_up(self, data: bytes) -> None:
        """Lines that can never be written."""
        self.dropped += data.count(b"\n")


_NEWLINE = 0x0A


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _stdout() -> int | None:
    """The descriptor of standard output; ``None`` if the process was started without one, or has closed it."""
    try:
        fd = sys.__stdout__.fileno() if sys.__stdout__ is not None else None
        if fd is not None:
            os.fstat(fd)
    except (OSError, ValueError):
        return None
    return fd


def _poll_of(fd: int) -> "select.poll | None":
    """What tells whether there is room; ``None`` for a file, where there is room always."""
    if stat.S_ISREG(os.fstat(fd).st_mode) or not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll


def _cut(data: bytes, at: int) -> int:
    """Where a write to a pipe ends that begins at ``at``: after a line, unless that is too long."""
    end = at + _PIECE
    return len(data) if end >= len(data) else data.rfind(b"\n", at, end) + 1 or end
