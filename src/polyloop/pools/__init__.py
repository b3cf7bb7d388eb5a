"""Connections and other resources shared by all loops under one cap.

``ResourcePool`` lends what is expensive to make; ``per_loop`` is for clients that keep a pool of their own.
"""

from polyloop._core._errors import ForeignLoopError, PoolBusyError, PoolClosedError
from polyloop.pools._loan import Loan
from polyloop.pools._per_loop import AsyncPerLoop, PerLoop, per_loop
from polyloop.pools._pool import ResourcePool
from polyloop.pools._stats import PoolStats, WaitHistogram

__all__ = (
    "AsyncPerLoop",
    "ForeignLoopError",
    "Loan",
    "PerLoop",
    "PoolBusyError",
    "PoolClosedError",
    "PoolStats",
    "ResourcePool",
    "WaitHistogram",
    "per_loop",
)
