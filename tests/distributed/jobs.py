"""What the tests run on workers, where this file is imported by its name."""

import asyncio
import fcntl
import os
import threading
from pathlib import Path

import polyloop


def square(number: int) -> int:
    return number * number


def where() -> int:
    return os.getpid()


def hold(gate: str, value: int) -> int:
    """Say that this call has begun, and wait for the gate to open."""
    begun = os.open(f"{gate}.begun", os.O_WRONLY | os.O_NONBLOCK)  # fails, instead of waiting, where no test listens
    os.write(begun, f"{os.getpid()}\n".encode())
    os.close(begun)
    with open(gate) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    return value


def leave_mark(path: str) -> None:
    Path(path).touch()


def fail_until(folder: str, times: int) -> int:
    """Fail as often as that, over all processes; then say how often."""
    tried = len(list(Path(folder).glob("try-*")))
    Path(folder, f"try-{tried}").touch()
    if tried < times:
        raise OSError(f"try {tried}")
    return tried


async def on_a_runtime() -> tuple[int, int, str, bool]:
    """The process, the identity of its runtime, the thread, and whether two tasks can meet."""
    met = asyncio.Event()

    async def other() -> None:
        met.set()

    async with polyloop.TaskGroup() as group:
        group.create_task(other(), on="here")
        await met.wait()
    runtime = polyloop.current_runtime()
    return os.getpid(), id(runtime), threading.current_thread().name, True


async def fail_async() -> None:
    await asyncio.sleep(0)
    raise SystemExit(3)


class Refused(ValueError):
    """Its constructor takes other arguments than it hands on."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.reason = reason


def refuse() -> None:
    try:
        look_up()
    except KeyError as exc:
        error = Refused(7, reason="unknown")
        error.add_note("a note")
        raise error from exc


def look_up() -> None:
    raise KeyError("inner")


class Unpicklable(LookupError):
    """Carries what cannot travel."""

    def __init__(self) -> None:
        super().__init__("carries a lock")
        self.lock = threading.Lock()


def raise_unpicklable() -> None:
    raise Unpicklable


@polyloop.async_wrap
def wrapped(number: int) -> int:
    return number + 1


async def double_async(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def refuse_odd(number: int) -> int:
    if number % 2:
        raise Refused(number, reason="odd")
    return number
