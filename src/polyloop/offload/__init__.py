"""Sync code off the loops: on threads, or on any executor."""

from polyloop._core._pool import ThreadPool, thread_pool
from polyloop.offload._from_thread import sleep_sync
from polyloop.offload._offload import offload
from polyloop.offload._targets import OffloadTo
from polyloop.offload._to_thread import to_thread
from polyloop.offload._wrap import async_wrap

__all__ = ("OffloadTo", "ThreadPool", "async_wrap", "offload", "sleep_sync", "thread_pool", "to_thread")
