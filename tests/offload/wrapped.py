"""Functions that a process pool finds by their names."""

import os
from concurrent.futures import ProcessPoolExecutor

import polyloop


def plain(number: int, *, plus: int = 0) -> tuple[int, int]:
    """A function that is not decorated."""
    return os.getpid(), number + plus


def decorate(pool: ProcessPoolExecutor) -> None:
    """Decorate the functions below, as ``@polyloop.async_wrap(executor=pool)`` above them would."""
    globals()["decorated"] = polyloop.async_wrap(executor=pool)(decorated)
    Multiplier.times = polyloop.async_wrap(executor=pool)(Multiplier.times)  # type: ignore[assignment, method-assign]


def decorated(number: int, *, plus: int = 0) -> tuple[int, int]:
    """Replaced under its own name by an async function; a child process finds the sync one or the async one."""
    return os.getpid(), number + plus


class Multiplier:
    """An object that pickles, with a method that is decorated."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, number: int) -> int:
        return self.factor * number


def failing() -> None:
    """Raises in the other process."""
    raise ValueError("in the other process")
