"""What blocks, and what tells the time, in the model of an exploration.

While a scenario is explored, the factories of locks and the clocks are replaced: in ``threading``, ``queue`` and
``time``, and wherever a module under test, or the seam, holds one of them by another name. What a scenario makes of
them waits in the model. ``threading``'s conditions, events, semaphores and barriers, ``queue``'s queues and
``concurrent.futures.Future`` are written in Python over those locks and follow by themselves. To a thread outside of
the exploration the replaced factories are the originals.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, TracebackType
from typing import Any

from polyloop.testing._explore_run import OWN_FILES, Run, State
from polyloop.testing._explore_worker import get_ident

_threading: Any = importlib.import_module("threading")
_queue: Any = importlib.import_module("queue")
_time: Any = importlib.import_module("time")


STATE = State()


def running() -> Run | None:
    """The run that the calling thread is a thread of."""
    run = STATE.run
    return run if run is not None and run.running == get_ident() else None


def modelled() -> bool:
    """Whether what the calling thread makes belongs to the model."""
    return STATE.run is not None and get_ident() in {STATE.run.running, STATE.explorer}


class ModelLock:
    """A ``threading.Lock`` that waits in the model."""

    def __init__(self) -> None:
        self._held = False  # like all state of the model: only the thread that has the baton touches it
        run = running()
        self._made = run.steps if run is not None else -1  # until its maker's next step nobody else has it

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock."""
        run = running()
        if run is None:
            return self._acquire_outside(blocking, timeout)
        if run.steps != self._made:
            run.operation("lock.acquire()")
        if self._held:
            if not blocking or timeout == 0:
                return False
            if not run.block(self._is_free, timeout if timeout >= 0 else None, "lock.acquire()"):
                return False
        self._held = True
        return True

    def _is_free(self) -> bool:
        return not self._held

    def _acquire_outside(self, blocking: bool, timeout: float) -> bool:
        if self._held:
            if blocking and timeout < 0:
                raise RuntimeError("a lock of the scenario is held, and no thread of it runs that could release it")
            return False
        self._held = True
        return True

    def release(self) -> None:
        """Release the lock."""
        run = running()
        if run is not None:
            run.operation("lock.release()")
        if not self._held and not (run is not None and run.over):
            raise RuntimeError("release unlocked lock")
        self._held = False

    def locked(self) -> bool:
        """Whether it is held."""
        run = running()
        if run is not None:
            run.operation("lock.locked()")
        return self._held

    def _is_owned(self) -> bool:  # for Condition, which else tries to acquire it
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ModelRLock:
    """A ``threading.RLock`` that waits in the model."""

    def __init__(self) -> None:
        self._owner = 0
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock once more."""
        run = running()
        me = get_ident()
        if self._owner == me:
            self._count += 1
            return True
        if run is not None:
            run.operation("rlock.acquire()")
        if self._count:
            if not blocking or timeout == 0:
                return False
            if run is None:
                raise RuntimeError("a lock of the scenario is held, and no thread of it runs that could release it")
            if not run.block(self._is_free, timeout if timeout >= 0 else None, "rlock.acquire()"):
                return False
        self._owner, self._count = me, 1
        return True

    def _is_free(self) -> bool:
        return not self._count

    def release(self) -> None:
        """Release the lock once."""
        run = running()
        if self._owner != get_ident():
            if run is not None and run.over:
                return
            raise RuntimeError("cannot release un-acquired lock")
        if self._count > 1:
            self._count -= 1
            return
        if run is not None:
            run.operation("rlock.release()")
        self._owner = self._count = 0

    def locked(self) -> bool:
        """Whether it is held."""
        return bool(self._count)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    # For Condition

    def _is_owned(self) -> bool:
        return self._owner == get_ident()

    def _release_save(self) -> int:
        count = self._count
        self._count = min(count, 1)
        self.release()
        return count

    def _acquire_restore(self, count: int) -> None:
        self.acquire()
        self._count = count


def _factory(real: Callable[[], Any], model: type[Any]) -> Callable[[], Any]:
    def make() -> Any:
        return model() if modelled() else real()

    make.__name__ = make.__qualname__ = getattr(real, "__name__", model.__name__)
    return make


#: What a look at a clock takes, in virtual seconds: a loop until some time has passed ends.
_TICK = 1e-6


def _clock(real: Callable[[], Any], unit: int | None) -> Callable[[], Any]:
    def now() -> Any:
        if not modelled():
            return real()
        assert STATE.run is not None
        STATE.run.now += _TICK
        return STATE.run.now if unit is None else int(STATE.run.now * unit)

    return now


def _sleep(real: Callable[[float], None]) -> Callable[[float], None]:
    def sleep(seconds: float, /) -> None:
        run = running()
        if run is None:
            if not modelled():
                real(seconds)
        elif seconds > 0:
            run.block(lambda: False, seconds, f"sleep({seconds})")
        else:
            run.operation("sleep(0)")

    return sleep


def _start(real: Callable[[Any], None]) -> Callable[[Any], None]:
    def start(self: Any) -> None:
        if modelled():
            raise RuntimeError(f"{self!r} would run outside of the exploration; add its function with 'it.thread()'")
        real(self)

    return start


class Patches:
    """The replacements, and the way back."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any]] = []

    def _replacements(self) -> Iterator[tuple[Any, Any]]:
        yield _threading.Lock, _factory(_threading.Lock, ModelLock)
        yield _threading._allocate_lock, _factory(_threading._allocate_lock, ModelLock)
        yield _threading.RLock, _factory(_threading.RLock, ModelRLock)
        for name in ("monotonic", "perf_counter"):
            yield getattr(_time, name), _clock(getattr(_time, name), None)
            yield getattr(_time, f"{name}_ns"), _clock(getattr(_time, f"{name}_ns"), 1_000_000_000)
        yield _time.sleep, _sleep(_time.sleep)
        if hasattr(_queue, "_PySimpleQueue"):
            yield _queue.SimpleQueue, _factory(_queue.SimpleQueue, _queue._PySimpleQueue)

    def apply(self, wanted: Callable[[str, str], bool]) -> None:
        """Replace, until ``undo``."""
        table = {id(real): (real, model) for real, model in self._replacements()}
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if module in (_threading, _queue, _time) or (
                file and not file.startswith(OWN_FILES) and wanted(file, name)
            ):
                self._patch(module, table)
        self._set(_threading.Thread, "start", _start(_threading.Thread.start))

    def _patch(self, module: ModuleType, table: dict[int, tuple[Any, Any]]) -> None:
        for name, value in list(module.__dict__.items()):
            found = table.get(id(value))
            if found is not None:
                self._set(module, name, found[1])

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._done.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back."""
        while self._done:
            owner, name, value = self._done.pop()
            setattr(owner, name, value)
