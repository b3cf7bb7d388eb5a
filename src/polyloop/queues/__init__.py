"""Queues between any loops and any threads, with or without a runtime.

Each has two faces on one object: itself with asyncio's methods, and ``.sync`` with those of ``queue``.
"""

from polyloop._core._errors import QueueEmpty, QueueFull, QueueShutDown
from polyloop.queues._ordered import LifoQueue, PriorityQueue
from polyloop.queues._queue import Queue
from polyloop.queues._simple import SimpleQueue, SyncSimpleQueue
from polyloop.queues._sync import SyncQueue

__all__ = (
    "LifoQueue",
    "PriorityQueue",
    "Queue",
    "QueueEmpty",
    "QueueFull",
    "QueueShutDown",
    "SimpleQueue",
    "SyncQueue",
    "SyncSimpleQueue",
)
