"""A rolling restart: the same command again, as a new process that serves on the same listening sockets.

1. The old process makes a pipe and starts the new one, which inherits the listening sockets and the pipe's end; their
   numbers are in ``POLYLOOP_HANDOVER``. From now on both processes could accept from the same backlogs.
2. The new process takes them (``handed_over``), starts its application, accepts, and says so (``report_ready``).
3. The old process hears it, stops accepting without emptying the backlogs, finishes its requests and ends.

If the new one ends, or says nothing in time, it is ended for good and the old one has lost nothing.

In the old process one thread does all that may block, so that no event loop waits: it reads the pipe, and waits for the
process, so that there is no zombie. It ends with the new process, and does not keep the old one from ending.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from polyloop._core import _prims
from polyloop._core._completion import Completion
from polyloop._core._errors import ServerStartError
from polyloop.serve._accepted import logger
from polyloop.serve._systemd import notify, take_listener

_VARIABLE = "POLYLOOP_HANDOVER"

#: What a successor must not inherit: sockets that were opened for this process, and that this one is the watched one.
_NOT_INHERITED = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")

#: Seconds from SIGTERM to SIGKILL for a successor that is not wanted.
_PATIENCE = 5.0


class Successor:
    """This command once more, as a new process with these listening sockets; started at once.

    Args:
        sockets: What it is to listen on; this process keeps its own.
        argv: The command; by default the one that this process was started with, in the folder where that was. (A
            symbolic link on the way to that folder is followed anew: so a new release is found behind it.)

    Attributes:
        pid: The new process.
    Raises:
        OSError: it cannot be started.
        ServerStartError: there are no sockets to hand over, or this system has no way to do it.
    Thread safety: one thread.
    """

    def __init__(self, sockets: Sequence[socket.socket], argv: Sequence[str] | None = None) -> None:
        if os.name != "posix":
            raise ServerStartError("sockets cannot be handed to another process on this system; stop, and start again")
        if not sockets:
            raise ServerStartError("there are no listening sockets to hand over; the server does not serve")
        self._said = Completion[bytes]()  # empty: it ended, or will never say anything
        self._ended = Completion[int]()
        self._unwanted = False  # it was told to end
        heard, told = os.pipe()
        try:
            self._process = _start(argv or _own_command(), [sock.fileno() for sock in sockets], told)
        except BaseException:
            os.close(heard)
            raise
        finally:
            os.close(told)
        self.pid = self._process.pid
        _prims.start_thread(lambda: self._watch(heard), f"successor {self.pid}")

    def __repr__(self) -> str:
        return f"<Successor process {self.pid}>"

    async def ready(self, timeout: float) -> None:
        """Wait until it serves; to be called once.

        Raises:
            ServerStartError: it ended, or did not serve in time and was ended.
        Cancellation: it is ended.
        """
        serves = False
        try:
            async with asyncio.timeout(timeout):
                serves = bool(await self._said)
                if not serves:
                    raise ServerStartError(_obituary(self.pid, await self._ended))
        except TimeoutError:
            raise ServerStartError(f"process {self.pid} did not serve within {timeout:g} s and was ended") from None
        finally:
            if not serves:
                self._stop_soon()
        # The manager believes the process that it knows as the main one, and that is still this one.
        notify(f"MAINPID={self.pid}")

    async def end(self) -> None:
        """End it if it has not ended: SIGTERM, and SIGKILL when that does not help within 5 s; returns when it is gone.

        For a process that ends itself, since the threads that see to it otherwise end with this process.

        Cancellation: it is told to end, but not waited for.
        """
        self._stop_soon()
        if not await self._gone_within(_PATIENCE):
            self._process.kill()
            await self._gone_within(_PATIENCE)

    def _stop_soon(self) -> None:
        if not self._unwanted and not self._ended.done():
            self._unwanted = True  # once: a second SIGTERM would tell it to hurry
            _prims.start_thread(self._stop, f"end of successor {self.pid}")

    async def _gone_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended
        # The watching thread may still wait for a process that has the pipe from this one.
        return self._ended.done() or self._process.poll() is not None

    # Threads of their own

    def _watch(self, heard: int) -> None:
        with open(heard, "rb") as pipe:
            word = pipe.readline()
        self._said._complete(word)
        code = self._process.wait()
        self._ended._complete(code)
        if word:
            logger.warning("polyloop: %s; it had taken over the listening sockets", _obituary(self.pid, code))

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _start(argv: Sequence[str], fds: Sequence[int], told: int) -> "subprocess.Popen[bytes]":
    environ = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environ[_VARIABLE] = json.dumps({"sockets": fds, "ready": told, "generation": generation() + 1})
    return subprocess.Popen(argv, env=environ, pass_fds=[*fds, told], cwd=_FOLDER)


def _obituary(pid: int, code: int) -> str:
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"process {pid} {how}"


def _own_command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def _start_folder() -> str | None:
    """The folder where this process was started, by the name that its starter has for it."""
    try:
        here, name = os.stat("."), os.environ.get("PWD", "")
        if os.path.isabs(name) and os.path.samestat(os.stat(name), here):
            return name
        return os.getcwd()
    except OSError:
        return None


_FOLDER = _start_folder()  # now, before anybody changes it


# The new process


class _Inheritance:
    """What this process has from the one before; changed by the thread that serves."""

    generation = 1
    ready: int | None = None


_inheritance = _Inheritance()


def generation() -> int:
    """How many processes have served on these sockets, this one included."""
    return _inheritance.generation


def is_successor() -> bool:
    """Whether another process has handed its sockets over, and nobody has taken them yet."""
    return _VARIABLE in os.environ


def handed_over() -> list[socket.socket]:
    """The listening sockets that another process has handed to this one; ours from now on.

    Returns:
        None if this process is nobody's successor, and after the first call.
    Raises:
        ValueError: what was handed over makes no sense.
    Thread safety: once, at the start.
    """
    given = os.environ.pop(_VARIABLE, None)
    if given is None:
        return []
    try:
        parts = json.loads(given)
        fds, ready, number = list(parts["sockets"]), int(parts["ready"]), int(parts["generation"])
    except (ValueError, TypeError, KeyError) as exc:
        raise ValueError(f"{_VARIABLE}={given!r} is not what a predecessor writes; unset it") from exc
    taken: list[socket.socket] = []
    try:
        os.set_inheritable(ready, False)
        taken.extend(take_listener(fd, _VARIABLE) for fd in fds)
    except (ValueError, TypeError, OSError) as exc:
        for sock in taken:
            sock.close()
        raise ValueError(f"{_VARIABLE}={given!r} is wrong, so unset it: {exc}") from exc
    _inheritance.generation = number
    _inheritance.ready = ready
    return taken


def report_ready() -> bool:
    """Tell the process that handed its sockets over that this one serves; whether there was one."""
    ready, _inheritance.ready = _inheritance.ready, None
    if ready is None:
        return False
    notify(f"MAINPID={os.getpid()}", "READY=1")
    try:
        os.write(ready, b"serving\n")
    except OSError:  # it has ended meanwhile
        pass
    finally:
        os.close(ready)
    return True
