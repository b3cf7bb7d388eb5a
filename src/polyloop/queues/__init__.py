"""Queues and channels between any loops and any threads, with or without a runtime.

Each has two faces on one object: itself with asyncio's methods, and ``.sync`` with those for plain threads. A queue is
one object that all use. A channel has ends, which are handed out, cloned and closed one by one.
"""

from polyloop._core._errors import ChannelClosed, ClosedEndError, Lagged, QueueEmpty, QueueFull, QueueShutDown
from polyloop.queues._broadcast import BroadcastReceiver, BroadcastSender, broadcast
from polyloop.queues._channel import Receiver, Sender, SyncSender, channel
from polyloop.queues._ends import SyncReceiver
from polyloop.queues._oneshot import OneshotReceiver, OneshotSender, oneshot
from polyloop.queues._ordered import LifoQueue, PriorityQueue
from polyloop.queues._queue import Queue
from polyloop.queues._select import Selected, select, select_sync
from polyloop.queues._simple import SimpleQueue, SyncSimpleQueue
from polyloop.queues._sync import SyncQueue
from polyloop.queues._watch import SyncWatchReceiver, WatchReceiver, WatchSender, watch

__all__ = (
    "BroadcastReceiver",
    "BroadcastSender",
    "ChannelClosed",
    "ClosedEndError",
    "Lagged",
    "LifoQueue",
    "OneshotReceiver",
    "OneshotSender",
    "PriorityQueue",
    "Queue",
    "QueueEmpty",
    "QueueFull",
    "QueueShutDown",
    "Receiver",
    "Selected",
    "Sender",
    "SimpleQueue",
    "SyncQueue",
    "SyncReceiver",
    "SyncSender",
    "SyncSimpleQueue",
    "SyncWatchReceiver",
    "WatchReceiver",
    "WatchSender",
    "broadcast",
    "channel",
    "oneshot",
    "select",
    "select_sync",
    "watch",
)
