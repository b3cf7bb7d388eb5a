"""Which loop and which runtime the calling thread belongs to.

One thread-local cell a thread, written by that thread only. A worker's thread gets its cell before the loop runs; the
thread of a loop that somebody else runs (``asyncio.run``, Jupyter, pytest) gets one at its first use of polyloop.
"""

import asyncio
from typing import TYPE_CHECKING

from polyloop._core import _prims

if TYPE_CHECKING:
    from polyloop._core._port import Port


class _Here(_prims.local):
    port: "Port | None" = None  # the way into the loop of this thread
    guests: "tuple[Port, ...]" = ()  # ports of loops not of ours that took turns on this thread and are not closed
    call_port: "Port | None" = None  # on an offload thread: the port whose call runs here


here = _Here()


def runs_a_loop() -> bool:
    """Whether an event loop of any kind runs on the calling thread, which therefore must not block."""
    return asyncio._get_running_loop() is not None
