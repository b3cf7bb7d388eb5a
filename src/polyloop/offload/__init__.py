"""Sync code off the loops: on threads, or on any executor."""

from polyloop._core._pool import ThreadPool, thread_pool
from polyloop.offload._to_thread import to_thread
from polyloop.offload._wrap import async_wrap

__all__ = ("ThreadPool", "async_wrap", "thread_pool", "to_thread")
