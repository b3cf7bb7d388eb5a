"""The runtime: N loops that behave like one. See ``Runtime`` and ``run``."""

from polyloop._core._ending import Stuck
from polyloop._core._worker import Worker
from polyloop.runtime import _hooks as _hooks
from polyloop.runtime._current import current_runtime, spawn
from polyloop.runtime._executor import RuntimeExecutor
from polyloop.runtime._future import RuntimeFuture
from polyloop.runtime._migrate import checkpoint, pinned, sleep
from polyloop.runtime._placement import Here, LeastLoaded, Placement, RoundRobin
from polyloop.runtime._report import ShutdownReport
from polyloop.runtime._run import run
from polyloop.runtime._runtime import Runtime

__all__ = (
    "Here",
    "LeastLoaded",
    "Placement",
    "RoundRobin",
    "Runtime",
    "RuntimeExecutor",
    "RuntimeFuture",
    "ShutdownReport",
    "Stuck",
    "Worker",
    "checkpoint",
    "current_runtime",
    "pinned",
    "run",
    "sleep",
    "spawn",
)
