"""The executors of this process that are connected: closed at its exit, forgotten in a forked child."""

import atexit
import os
from typing import TYPE_CHECKING

from polyloop._core import _prims

if TYPE_CHECKING:
    from polyloop.distributed._offload import DaskOffload

#: Seconds that all of them together get at exit. A guess: it takes milliseconds.
EXIT_TIMEOUT = 3.0

#: An ordered set; adding, removing and copying are single operations of the dict.
_open: "dict[DaskOffload, None]" = {}


def add(offload: "DaskOffload") -> None:
    """It has begun to connect."""
    _open[offload] = None


def discard(offload: "DaskOffload") -> None:
    """It has ended."""
    _open.pop(offload, None)


def _close_at_exit() -> None:
    deadline = _prims.monotonic() + EXIT_TIMEOUT
    left = list(_open)
    for offload in left:
        offload._abandon()
    for offload in left:
        thread = offload._link.thread
        if thread is not None:
            thread.join(max(0.0, deadline - _prims.monotonic()))


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)
