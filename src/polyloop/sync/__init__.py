"""Primitives that work between any loops and any threads, with or without a runtime.

Each has two faces on one object: itself with asyncio's signatures, and ``.sync`` with those of ``threading``.
"""

from polyloop._core._errors import BusyResourceError, DeadlockParty
from polyloop.sync._barrier import Barrier, SyncBarrier
from polyloop.sync._capacity import CapacityLimiter, SyncCapacityLimiter, WouldBlock
from polyloop.sync._condition import Condition, SyncCondition
from polyloop.sync._event import Event, SyncEvent
from polyloop.sync._guard import ResourceGuard
from polyloop.sync._latch import Latch, SyncLatch
from polyloop.sync._lock import Lock, RLock, SyncLock, SyncRLock
from polyloop.sync._once import Once, SyncOnce
from polyloop.sync._rwlock import RWLock, RWLockSide, SyncRWLock, SyncRWLockSide
from polyloop.sync._semaphore import BoundedSemaphore, Semaphore, SyncSemaphore

__all__ = (
    "Barrier",
    "BoundedSemaphore",
    "BusyResourceError",
    "CapacityLimiter",
    "Condition",
    "DeadlockParty",
    "Event",
    "Latch",
    "Lock",
    "Once",
    "RLock",
    "RWLock",
    "RWLockSide",
    "ResourceGuard",
    "Semaphore",
    "SyncBarrier",
    "SyncCapacityLimiter",
    "SyncCondition",
    "SyncEvent",
    "SyncLatch",
    "SyncLock",
    "SyncOnce",
    "SyncRLock",
    "SyncRWLock",
    "SyncRWLockSide",
    "SyncSemaphore",
    "WouldBlock",
)
