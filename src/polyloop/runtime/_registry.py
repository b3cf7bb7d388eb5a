"""The runtimes of this process that run: for the exit hook, the fork hook, and callers that name none."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyloop.runtime._life import Life

#: An ordered set. Adding, removing and copying are single operations of the dict, so no lock is needed, which a signal
#: handler, a finaliser or a forked child could find taken.
_running: "dict[Life, None]" = {}


def add(runtime: "Life") -> None:
    """``runtime`` has started."""
    _running[runtime] = None


def discard(runtime: "Life") -> None:
    """``runtime`` has ended."""
    _running.pop(runtime, None)


def running() -> "list[Life]":
    """Those that run now, the oldest first."""
    return list(_running)
