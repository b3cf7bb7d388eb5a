"""Small tools of the runtime's tests: programs in processes of their own, and loops held still."""

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from polyloop import Runtime, TaskHandle, Worker

#: Seconds after which a wait for something that must happen counts as failed. Never waited out in a passing test.
PATIENCE = 30.0


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of stderr: of a traceback, the error a user reads."""
        return self.err.rstrip().rpartition("\n")[2]


#: Two lines, so that the program's first line, after the quotes, is line 3. A shell that starts the tests in the
#: background has them, and so these programs, ignore SIGINT.
_PREAMBLE = """\
import asyncio, os, signal, sys, threading, time, traceback; signal.signal(signal.SIGINT, signal.default_int_handler)
import polyloop
"""


class Program:
    """A program given as source text, running in a process of its own; ``polyloop`` and ``asyncio`` are imported."""

    def __init__(self, source: str, *, env: dict[str, str] | None = None) -> None:
        code = _PREAMBLE + textwrap.dedent(source)
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._seen: list[str] = []

    def wait_for(self, line: str) -> None:
        """Read the program's output until it prints ``line``."""
        assert self.process.stdout is not None
        for read in self.process.stdout:
            self._seen.append(read)
            if read.rstrip("\n") == line:
                return
        raise AssertionError(f"the program ended before it printed {line!r}: {self.end()}")

    def send(self, signum: int) -> None:
        """Send the program a signal."""
        self.process.send_signal(signum)

    def end(self, timeout: float = PATIENCE) -> Ended:
        """Wait for the program's end."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            out, err = self.process.communicate()
            raise AssertionError(f"the program did not end:\n{''.join(self._seen)}{out}\n{err}") from None
        return Ended(self.process.returncode, "".join(self._seen) + out, err)


def run_program(source: str, *, env: dict[str, str] | None = None, timeout: float = PATIENCE) -> Ended:
    """Run ``source`` in a process of its own and wait for its end."""
    return Program(source, env=env).end(timeout)


class Gate:
    """Holds a loop's thread inside a step, until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    async def step(self) -> str:
        """The step that blocks its loop."""
        self.hold()
        return threading.current_thread().name

    def hold(self) -> None:
        """Block the calling thread until ``open``."""
        self.entered.set()
        assert self._open.wait(PATIENCE)

    def open(self) -> None:
        """Let the held thread go on."""
        self._open.set()

    def wait_entered(self) -> None:
        """Wait until the loop is held."""
        assert self.entered.wait(PATIENCE)


@contextmanager
def held(runtime: Runtime, *workers: Worker) -> Iterator[list[TaskHandle[str]]]:
    """Block the loops of ``workers`` inside a step; gives the handles of these steps."""
    gates = [Gate() for _ in workers]
    handles = [runtime.spawn(gate.step, on=worker) for gate, worker in zip(gates, workers, strict=True)]
    try:
        for gate in gates:
            gate.wait_entered()
        yield handles
    finally:
        for gate in gates:
            gate.open()


async def where() -> str:
    """The name of the thread that runs this task."""
    return threading.current_thread().name


async def forever() -> None:
    """Wait for a cancellation."""
    await asyncio.get_running_loop().create_future()


async def stop_own_loop() -> None:
    """Kill the loop that runs this task, and wait to be cleaned up."""
    asyncio.get_running_loop().stop()
    await forever()


def in_thread[T](fn: Callable[[], T]) -> T:
    """Run ``fn`` in a thread of its own; return or raise what it returned or raised."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((fn(), None))
        except BaseException as exc:
            outcome.append((None, exc))

    thread = threading.Thread(target=work, name="helper")
    thread.start()
    thread.join(PATIENCE)
    assert outcome, "the thread did not end"
    result, exc = outcome[0]
    if exc is not None:
        raise exc
    return result  # type: ignore[no-any-return]


def is_closed(coro: Coroutine[Any, Any, Any]) -> bool:
    """Whether a coroutine was closed, or has ended, so that nothing warns that it was never awaited."""
    return inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def worker_threads() -> list[str]:
    """Names of the workers' threads that exist; those of the pool stay, and the helper of a start ends by itself."""
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("polyloop-")]
    return sorted(name for name in names if "thread" not in name and name != "polyloop-start")
