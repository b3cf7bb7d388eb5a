"""What the tests of ``offload`` run in other processes and interpreters, which find it by its name."""

import contextvars
import os
import signal
import time

variable = contextvars.ContextVar("variable", default="unset")


def pid() -> int:
    """Which process runs this."""
    return os.getpid()


def add(a: int, b: int = 0) -> int:
    return a + b


def swap(value: str) -> str:
    """Set the variable; return what it was."""
    seen = variable.get()
    variable.set(value)
    return seen


def deep(number: int) -> None:
    """Raise, a few frames down."""
    if number:
        deep(number - 1)
    raise LookupError("not here", number)


def die() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
