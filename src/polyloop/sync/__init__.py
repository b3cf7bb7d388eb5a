"""Primitives that work between any loops and any threads, with or without a runtime."""

from polyloop.sync._capacity import CapacityLimiter, SyncCapacityLimiter, WouldBlock

__all__ = ("CapacityLimiter", "SyncCapacityLimiter", "WouldBlock")
