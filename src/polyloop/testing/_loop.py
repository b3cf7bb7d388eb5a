"""``TestLoop``: a loop in its own thread that a test can hold still and wait for."""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Self, overload

from polyloop._core import _prims
from polyloop._core._completion import Completion
from polyloop._core._ending import thread_stack
from polyloop._core._errors import RuntimeClosedError
from polyloop._core._handle import TaskHandle
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._spin import spin_ns_for
from polyloop._core._worker import Worker
from polyloop.testing._clock import FakeClock
from polyloop.testing._steps import STEP_TIMEOUT, Gate
from polyloop.testing._worker import WatchedWorker

#: Seconds that tasks get to clean up when a test's loop is closed.
_CLOSE_TIMEOUT = 5.0


class TestLoop:
    """A worker's loop in a thread of its own, driven by the thread of a test.

    For example::

        with TestLoop("left") as left, TestLoop("right") as right:
            getter = left.spawn(queue.get)
            left.wait_all_blocked()
            with left.paused():  # both happen before the getter can run
                getter.cancel()
                right.run(queue.put_nowait, "a")
            left.wait_all_blocked()

    Leaving the block closes the loop: tasks that still run are cancelled, and errors that were reported to the loop and
    not taken with ``take_errors`` are raised.

    Args:
        name: Name of the thread, shown in errors.
        clock: Virtual time; see ``FakeClock``. Real time by default.
        loop_factory: Makes a loop of another kind, which polyloop serves like a foreign one; such a loop cannot be
            waited for with ``wait_all_blocked`` and has no fake clock.
        spin: How long the loop looks for work before it sleeps, as in ``Runtime``; not at all by default.
        debug: asyncio's debug mode.
        timeout: Seconds after which a wait for this loop gives up and shows where it is.
    Raises:
        ValueError: both ``clock`` and ``loop_factory`` are given.
    Thread safety: any plain thread, unless a method says otherwise. ``paused`` is for one thread at a time.

    .. versionadded:: 0.1
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(
        self,
        name: str = "test-loop",
        *,
        clock: FakeClock | None = None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        spin: bool | float = False,
        debug: bool | None = None,
        timeout: float = STEP_TIMEOUT,
    ) -> None:
        if clock is not None and loop_factory is not None:
            raise ValueError("a clock works with polyloop's own loop only; leave loop_factory out")
        self._timeout = timeout
        self._clock = clock
        self._own = loop_factory is None
        self._errors: deque[dict[str, Any]] = deque()  # appended by the loop's thread, popped by the test's
        self._pauser = 0  # identity of the thread inside paused()
        self._closed = False
        self._next_timer = 0.0  # as of the last wait; for the clock
        self._worker = WatchedWorker(
            name, clock=clock, spin_ns=spin_ns_for(spin), loop_factory=loop_factory, debug=debug
        )
        self._start()

    def _start(self) -> None:
        worker = self._worker
        worker.start_thread()
        worker.ready._block(self._timeout, ".start()")
        worker.ready._outcome()
        self.run(worker.loop.set_exception_handler, self._keep_error)
        if self._clock is not None:
            self._clock._loops.append(self)

    def _keep_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._errors.append(context)

    def __repr__(self) -> str:
        return f"<TestLoop {self._worker.name!r}{' closed' if self._closed else ''}>"

    @property
    def worker(self) -> Worker:
        """The worker: the way into this loop that handles name. Its ``post`` is for any thread."""
        return self._worker

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop itself, to be touched by its own thread only."""
        return self._worker.loop

    def spawn[*Ts, T](
        self, fn: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts, name: str | None = None
    ) -> TaskHandle[T]:
        """Start ``fn(*args)`` as a task on this loop, in a copy of the caller's context; return its handle.

        Thread safety: any thread. Calls from one thread start in call order.
        """
        handle = TaskHandle(fn(*args), name, contextvars.copy_context())
        self._worker.admit(handle, False)
        return handle

    @overload
    def run[**P, T](self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def run[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``fn`` in a task on this loop, await what it returns if that is a coroutine, and wait for it.

        Raises:
            TimeoutError: it did not end in time; the message shows where the loop is.
            BaseException: what ``fn`` raised.
        """
        self._refuse_paused("run()")

        async def call() -> Any:
            result = fn(*args, **kwargs)
            return await result if asyncio.iscoroutine(result) else result

        handle = self.spawn(call, name=getattr(fn, "__qualname__", None))
        self._wait_for(handle, "run()")
        return handle.result()

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Hold the loop inside a callback until the block is left.

        What is posted to the loop meanwhile, cancelled there or completed elsewhere, waits, and is seen in its order
        when the block is left.

        Raises:
            RuntimeError: this thread holds the loop already.
            TimeoutError: the loop did not come to the hold in time.
        """
        self._refuse_paused("paused()")
        gate = Gate(f"pause of {self._worker.name}", timeout=self._timeout)
        self._worker.post(lambda: self._worker.loop.call_soon(gate.pause))
        gate.reached()
        self._pauser = _prims.get_ident()
        try:
            yield
        finally:
            self._pauser = 0
            gate.open()

    def wait_all_blocked(self) -> None:
        """Wait until the loop has nothing to do: nothing ready, nothing posted, no socket ready, and no timer due.

        What this thread did before is taken in first. It does not wait for other threads, or for other loops; see the
        function ``wait_all_blocked`` for that.

        Raises:
            TimeoutError: the loop did not come to rest in time; the message shows where it is.
        """
        self._settle()

    def _settle(self) -> int:
        """Wait until the loop is blocked; return the count of what it has done so far."""
        self._refuse_paused("wait_all_blocked()")
        if not self._own:
            raise RuntimeError(f"only polyloop's own loop tells when it is blocked, not {self.loop!r}")
        answer = Completion[tuple[int, float]]()

        def tell(activity: int, next_timer: float) -> None:
            answer._complete((activity, next_timer))

        self._worker.post(self._worker.watch, tell)
        self._wait_for(answer, "wait_all_blocked()")
        activity, self._next_timer = answer._outcome()
        return activity

    def _wait_for(self, completion: Completion[Any], call: str) -> None:
        refuse_on_loop_thread(f"{self!r}.{call}", "await")
        try:
            completion._block(self._timeout, "")
        except TimeoutError:
            stack = "\n    ".join(thread_stack(self._worker.ident))
            raise TimeoutError(f"{call} of {self!r} took over {self._timeout} s; it is at\n    {stack}") from None

    def _refuse_paused(self, call: str) -> None:
        if self._pauser == _prims.get_ident():
            raise RuntimeError(f"{call} would wait for {self!r}, which this thread holds; leave 'paused()' first")

    def take_errors(self) -> list[dict[str, Any]]:
        """Return, and forget, what was reported to the loop's exception handler: asyncio's context dictionaries."""
        taken: list[dict[str, Any]] = []
        while self._errors:
            taken.append(self._errors.popleft())
        return taken

    def close(self) -> None:
        """Cancel what runs, close the loop and wait for its thread. Closing again does nothing.

        Raises:
            RuntimeError: a task would not end, named with its stack.
            TimeoutError: the loop did not come back in time.
            ExceptionGroup: what was reported to the loop's exception handler and not taken.
        """
        if self._closed:
            return
        self._refuse_paused("close()")
        self._closed = True
        if self._clock is not None:
            self._clock._loops.remove(self)
        worker = self._worker
        worker.post(worker.leave_clock)
        refusal = RuntimeClosedError(f"the task was not run to its end: {self!r} was closed")
        worker.post(worker.begin_wind_down, refusal, _prims.monotonic() + _CLOSE_TIMEOUT)
        self._wait_for(worker.ended, "close()")
        assert worker.thread is not None
        worker.thread.join(self._timeout)
        if worker.stuck:
            raise RuntimeError(f"{self!r} was closed while this would not end: " + "; ".join(map(str, worker.stuck)))
        self._raise_errors()

    def _raise_errors(self) -> None:
        errors = [_as_exception(context) for context in self.take_errors()]
        if errors:
            raise ExceptionGroup(f"errors were reported to {self!r}", errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as second:
            if exc is None:
                raise
            exc.add_note(f"and closing {self!r} raised {second!r}")


def _as_exception(context: dict[str, Any]) -> Exception:
    exc = context.get("exception")
    error = exc if isinstance(exc, Exception) else RuntimeError(repr(exc)) if exc else RuntimeError("no exception")
    error.add_note(f"reported as: {context.get('message')}")
    return error
