"""Calls that were cancelled and whose threads still run: counted, and named when their runtime ends.

A call is listed by its canceller and struck off by whoever completes it: the entry is a waiter of the completion, which
is called at once if that has come. So none stays listed.
"""

from collections.abc import Collection
from functools import partial
from typing import Protocol

from polyloop._core._completion import Wake
from polyloop._core._ending import Stuck, thread_stack
from polyloop._core._port import Port


class Call(Protocol):
    """What is listed.

    Attributes:
        port: Whose task has made the call.
        thread: Identity and name of the thread that runs it.
    """

    port: Port | None
    thread: tuple[int, str] | None

    @property
    def name(self) -> str: ...

    def _add_waiter(self, wake: Wake) -> None: ...


#: The calls, and whether nobody waits for them any more. Any thread, by single operations of the dict.
_calls: dict[Call, bool] = {}


def add(call: Call, *, abandoned: bool) -> None:
    """List a call until it is done. Any thread."""
    _calls[call] = abandoned
    call._add_waiter(partial(_calls.pop, call, None))


def abandoned() -> int:
    """How many threads of this process run calls that nobody waits for any more. Any thread."""
    return sum(nobody_waits for call, nobody_waits in _calls.copy().items() if call.thread is not None)


def forget() -> None:
    """In a forked child, where none of them runs."""
    _calls.clear()


def left_behind(ports: Collection[Port]) -> list[Stuck]:
    """The threads that still run cancelled calls of these ports. Any thread."""
    stuck: list[Stuck] = []
    for call, nobody_waits in _calls.copy().items():
        port, thread = call.port, call.thread
        if port in ports and port is not None and thread is not None:
            ident, name = thread
            state = "abandoned" if nobody_waits else "cancelled"
            stuck.append(Stuck("thread", f"{name}, {state} in {call.name}", port.name, thread_stack(ident)))
    return stuck
