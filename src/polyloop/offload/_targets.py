"""Where offloaded calls run: from what a caller says, or the environment, to an executor."""

import importlib
import os
import sys
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from polyloop._core import _pool, _prims
from polyloop.sync._capacity import CapacityLimiter

#: Where calls run: a word, the address of a cluster, or an executor; see ``offload``.
type OffloadTo = Literal["threads", "cpu", "processes", "interpreters"] | str | Executor  # noqa: PYI051 - for editors

#: The environment variable that says where calls run whose ``on`` is ``None``.
VARIABLE = "POLYLOOP_OFFLOAD"

_HAVE_INTERPRETERS = sys.version_info >= (3, 14)

_CHOICES = (
    "'threads', 'cpu', 'processes', 'interpreters', the address of a cluster ('tcp://host:port', 'tls://host:port',"
    " 'dask:tcp://host:port')"
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call runs.

    Attributes:
        executor: ``None`` for the process-wide pool of threads.
        limiter: Of all calls that compute, for ``"cpu"`` on threads.
        width: How many calls it runs at once, as far as that is known.
        coroutines: Whether it takes async functions, too.
    """

    executor: Executor | None
    limiter: CapacityLimiter | None
    width: int
    coroutines: bool


def resolve(on: OffloadTo | None) -> Target:
    """What ``on`` means at this moment; ``None`` is what the environment says, and threads if it says nothing.

    Raises:
        ModuleNotFoundError: it is the address of a cluster, and Dask is not installed.
        TypeError: it is neither a string nor an executor.
        ValueError: it is no word that is known, no address, or not to be had on this interpreter.
    """
    if on is None:
        value = os.environ.get(VARIABLE)
        return _threads() if not value else _from_environment(value)
    return _named(on, "on") if isinstance(on, str) else _of_executor(on)


def _from_environment(value: str) -> Target:
    try:
        return _named(value, f"the environment variable {VARIABLE}")
    except ModuleNotFoundError as exc:
        exc.add_note(f"The environment variable {VARIABLE} is {value!r}.")
        raise


def _named(name: str, source: str) -> Target:
    if name == "threads":
        return _threads()
    if name == "cpu":
        return _of_executor(_processes()) if _prims.gil_enabled() else _cpu()
    if name == "processes":
        return _of_executor(_processes())
    if name == "interpreters":
        return _of_executor(_interpreters(source))
    if "://" in name or name.startswith("dask:"):
        return _of_executor(_cluster(name, source))
    raise ValueError(f"{source} must be one of {_CHOICES}, or (as an argument) an executor; got {name!r}")


def _threads() -> Target:
    return Target(None, None, _pool.shared.pool.max_threads, False)


def _cpu() -> Target:
    limiter = _own.limiter
    return Target(None, limiter, int(limiter.total_tokens), False)


def _of_executor(executor: Any) -> Target:
    if not isinstance(executor, Executor):
        raise TypeError(f"on must be a concurrent.futures.Executor, or one of {_CHOICES}; got {executor!r}")
    return Target(executor, None, _width(executor), bool(getattr(executor, "runs_coroutines", False)))


def _width(executor: Any) -> int:
    """What the executor says itself; those of the standard library say it in a private attribute only."""
    for name in ("max_workers", "window", "_max_workers"):
        width = getattr(executor, name, None)
        if isinstance(width, int) and width > 0:
            return width
    return _prims.usable_cores()


def _processes() -> Executor:
    from polyloop.offload import _processes as module  # noqa: PLC0415 - imports multiprocessing, which takes a while

    return module.shared.processes


def _interpreters(source: str) -> Executor:
    if not _HAVE_INTERPRETERS:
        found = ".".join(map(str, sys.version_info[:2]))
        raise ValueError(
            f"{source} is 'interpreters', which needs CPython 3.14 or newer, and this is {found};"
            " use 'cpu' or 'processes' instead"
        )
    return _own.interpreters()


def _cluster(address: str, source: str) -> Executor:
    from polyloop import distributed  # noqa: PLC0415 - most programs never need it

    try:
        return distributed.shared(address)
    except ValueError as exc:
        raise ValueError(f"{source}: {exc}") from exc


class _Own:
    """What this process has of its own; a forked child gets neither."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = _prims.Lock()  # guards the two below
        self._limiter: CapacityLimiter | None = None
        self._pool: Executor | None = None

    @property
    def limiter(self) -> CapacityLimiter:
        """As many tokens as there are cores, for the calls that compute."""
        found = self._limiter
        if found is None:
            fresh = CapacityLimiter(_prims.usable_cores())
            with self._lock:
                found = self._limiter = self._limiter or fresh
        return found

    def interpreters(self) -> Executor:
        """The shared pool of interpreters."""
        with self._lock:
            if self._pool is None:
                self._pool = _new_interpreters()
            return self._pool

    def end_interpreters(self, wait: bool) -> None:
        """Cancel what has not begun; what runs in an interpreter cannot be stopped. A plain thread."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=wait, cancel_futures=True)


def _new_interpreters() -> Executor:
    module: Any = importlib.import_module("concurrent.futures.interpreter")
    made: Executor = module.InterpreterPoolExecutor(_prims.usable_cores(), thread_name_prefix="polyloop-interpreter")
    _install_exit_hook()
    return made


@cache
def _install_exit_hook() -> None:
    """Once: after that of ``concurrent.futures``, and so called before it, which waits for all that was submitted."""
    _prims.before_threads_end(lambda: _own.end_interpreters(wait=False))


_own = _Own()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own.reset)
