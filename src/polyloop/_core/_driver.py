"""Steps that end their task, without a ``StopIteration``.

``coro.send`` reports the end of a coroutine by an exception, which costs as much as three calls. Inside a generator,
``yield from coro`` reports it by a value. So a worker keeps a *driver*, a generator that steps the coroutines that are
sent to it, and says how each step went.

A coroutine that waits instead of ending keeps the driver: nothing ends a ``yield from`` but the end of what it yields
from. The worker goes on with another, and steps that coroutine itself from then on. That costs more than the exception
would, so a worker drives only while its steps end their tasks (``_crew``).
"""

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final


class Ended:
    """What a driver yields for a coroutine that has returned ``value``."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def take(self) -> Any:
        """The value, which nobody else keeps from now on."""
        value, self.value = self.value, None
        return value


#: What it yields for most.
ENDED: Final = Ended(None)


@types.coroutine
def _drive() -> Generator[Any, Any]:
    ended = None
    while True:
        coro: Generator[Any, Any, object] = yield ended  # a coroutine, which this kind of generator may yield from
        value = yield from coro
        ended = ENDED if value is None else Ended(value)
        value = None  # a driver outlives its tasks, and must not keep what was theirs
        del coro


def new_driver() -> "Callable[[Coroutine[Any, Any, Any]], Any]":
    """A function that takes one step of a coroutine, in the context of its caller.

    It returns what the coroutine yields, and is then spent; or an ``Ended``. What the coroutine raises, it raises, and
    is spent, too. It must be kept until that coroutine has ended: dropped before, it closes it.
    """
    generator: Any = _drive()
    generator.send(None)
    send: Callable[[Coroutine[Any, Any, Any]], Any] = generator.send
    return send


#: The frames of this module in a traceback.
DRIVER_CODE: Final = _drive.__code__
