"""The queues that are compared, and the fastest documented way to use each from a thread and from a loop.

culsans' and aiologic's queues are used by their own methods, which spares them the frame of a proxy; ``put`` of a
``SimpleQueue``, which waits for nothing, is called and not awaited. aiologic's checkpoints stay off, as they are.
"""

import asyncio
import queue
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiologic
import culsans
import janus

import polyloop


@dataclass(frozen=True, slots=True)
class Contender:
    """A kind of queue and its ends. Each takes the queue and returns the function that puts or gets one item.

    Args:
        make: Takes the bound, 0 for none.
        put, get: The ends for a thread; ``None`` if there is none.
        loop_put, loop_get: The ends for a loop, to be awaited.
        loop_put_now: Instead of ``loop_put``, where putting waits for nothing.
        bounded: Whether it can have a bound.
        one_loop: Whether it serves only one loop.
        close: Awaited at the end, if the queue asks for it.
    """

    make: Callable[[int], Any]
    put: Callable[[Any], Callable[[Any], object]] | None = None
    get: Callable[[Any], Callable[[], Any]] | None = None
    loop_put: Callable[[Any], Callable[[Any], Awaitable[object]]] | None = None
    loop_put_now: Callable[[Any], Callable[[Any], object]] | None = None
    loop_get: Callable[[Any], Callable[[], Awaitable[Any]]] | None = None
    bounded: bool = True
    one_loop: bool = False
    close: Callable[[Any], Awaitable[object]] | None = None


class FedQueue(asyncio.Queue[Any]):
    """``asyncio.Queue`` fed from elsewhere, as its users do without a library: by ``call_soon_threadsafe``."""

    def getter(self) -> Callable[[], Awaitable[Any]]:
        """The end for the loop that calls this; before anybody puts."""
        self._home = asyncio.get_running_loop()
        return self.get

    def feeder(self) -> Callable[[Any], object]:
        """The end for everybody else."""
        feed: Callable[..., object] = self._home.call_soon_threadsafe
        return partial(feed, self.put_nowait)


QUEUE, SIMPLE = "polyloop.Queue", "polyloop.SimpleQueue"
AIOLOGIC, AIOLOGIC_SIMPLE, CULSANS, JANUS = "aiologic.Queue", "aiologic.SimpleQueue", "culsans.Queue", "janus.Queue"
FED, ASYNCIO = "call_soon_threadsafe(asyncio.Queue)", "asyncio.Queue"

CONTENDERS: dict[str, Contender] = {
    QUEUE: Contender(
        polyloop.Queue,
        put=lambda q: q.sync.put,
        get=lambda q: q.sync.get,
        loop_put=lambda q: q.put,
        loop_get=lambda q: q.get,
    ),
    SIMPLE: Contender(
        lambda _: polyloop.SimpleQueue[Any](),
        put=lambda q: q.put,
        get=lambda q: q.sync.get,
        loop_put_now=lambda q: q.put,
        loop_get=lambda q: q.get,
        bounded=False,
    ),
    AIOLOGIC: Contender(
        lambda bound: aiologic.Queue(bound or None),
        put=lambda q: q.green_put,
        get=lambda q: q.green_get,
        loop_put=lambda q: q.async_put,
        loop_get=lambda q: q.async_get,
    ),
    AIOLOGIC_SIMPLE: Contender(
        lambda _: aiologic.SimpleQueue(),
        put=lambda q: q.put,
        get=lambda q: q.green_get,
        loop_put_now=lambda q: q.put,
        loop_get=lambda q: q.async_get,
        bounded=False,
    ),
    CULSANS: Contender(
        culsans.Queue,
        put=lambda q: q.sync_put,
        get=lambda q: q.sync_get,
        loop_put=lambda q: q.async_put,
        loop_get=lambda q: q.async_get,
    ),
    JANUS: Contender(
        janus.Queue,
        put=lambda q: q.sync_q.put,
        get=lambda q: q.sync_q.get,
        loop_put=lambda q: q.async_q.put,
        loop_get=lambda q: q.async_q.get,
        one_loop=True,
        close=lambda q: q.aclose(),
    ),
    FED: Contender(
        lambda _: FedQueue(),
        put=lambda q: q.feeder(),
        loop_put_now=lambda q: q.feeder(),
        loop_get=lambda q: q.getter(),
        bounded=False,
    ),
    "queue.Queue": Contender(queue.Queue, put=lambda q: q.put, get=lambda q: q.get),
    "queue.SimpleQueue": Contender(
        lambda _: queue.SimpleQueue[Any](), put=lambda q: q.put, get=lambda q: q.get, bounded=False
    ),
}

#: Only for two tasks of one loop.
LOCAL = Contender(asyncio.Queue, loop_put=lambda q: q.put, loop_get=lambda q: q.get, one_loop=True)

#: What has the semantics of ``polyloop.Queue``, or less (aiologic's has neither ``join`` nor ``shutdown``).
PEERS = (AIOLOGIC, CULSANS, JANUS)
