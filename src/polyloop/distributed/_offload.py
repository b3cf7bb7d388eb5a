"""``DaskOffload``: an executor whose workers are those of a Dask cluster.

Who owns what. ``_lock`` guards the state, the window, and the fate of every call; it is held for a few statements, and
nobody is told anything under it. The client, its futures and its loop belong to one thread (``_link``), which starts
with the first call and ends with the executor; other threads wake it.

Why every call ends. A call gets its fate under the lock, once: from whoever cancels it, or from that thread, which ends
it with its outcome, or, when the cluster is lost or the program ends, together with all others. Whoever set the fate
completes the future.

Why no call waits for ever in the window: a call is added and the thread is woken; whoever removes a call that was out
wakes it too; and it looks at the window after each wake-up (``_link`` says why none of them is lost).
"""

import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, overload

from polyloop._core import _prims
from polyloop._core._completion import Completion
from polyloop._core._errors import ClusterError, ClusterLostError, RuntimeClosedError
from polyloop._core._parking import refuse_on_loop_thread
from polyloop.distributed import _address, _dask
from polyloop.distributed._link import Link
from polyloop.distributed._window import Window

#: Calls on the scheduler at once. A guess: enough for some hundred threads, little enough for the scheduler's memory.
WINDOW = 1000

#: Seconds for reaching the scheduler.
CONNECT_TIMEOUT = 10.0

type State = Literal["new", "open", "closing", "closed", "lost"]


class Call[T](Future[T]):
    """The future of one call. Never "running": it can be cancelled until it is done."""

    def __init__(self, offload: "DaskOffload", fn: Callable[..., T], args: tuple[Any, ...], kwargs: Any) -> None:
        super().__init__()
        self.offload = offload
        self.fate: Literal["pending", "cancelled", "done"] = "pending"  # guarded by the executor's lock
        self.name: str = getattr(fn, "__name__", None) or type(fn).__name__
        self.work: tuple[Callable[..., T], tuple[Any, ...], Any] | None = (fn, args, kwargs)  # until it is sent

    def cancel(self) -> bool:
        """Cancel the call: for sure if it waits here, best effort if it is on the cluster.

        A call that has been sent is withdrawn from the scheduler. If a worker has begun it, it runs to its end there,
        and its result is dropped. Either way whoever waits for this future sees the cancellation at once.

        Returns:
            ``False`` if the call was done already.
        Thread safety: any thread.
        """
        return self.offload._cancel(self)

    def say_cancelled(self) -> None:
        """Complete the future, whose fate is set to that; ``wait`` and ``as_completed`` hear of it too."""
        super().cancel()
        self.set_running_or_notify_cancel()


class DaskOffload(Executor):
    """Runs calls on a Dask cluster; a ``concurrent.futures.Executor``, to be used wherever polyloop takes one.

    ::

        with polyloop.distributed.DaskOffload("tcp://scheduler:8786") as cluster:  # in async code: async with
            future = cluster.submit(simulate, 0.5)
            totals = list(cluster.map(total, files))

    Functions, arguments and results travel by cloudpickle: lambdas, closures and what ``__main__`` defines go as they
    are; all else is imported by name and must be installed on the workers. polyloop must be too, and on the scheduler.
    An ``async def`` function runs on the worker process' own runtime, which its first such call starts. Contexts stay
    here.

    Leaving the block waits for all calls. At the end of the program an executor that is still open is closed, and calls
    that are not done are cancelled.

    Args:
        address: The scheduler's address, ``"tcp://host:port"``. TLS is configured as Dask's own configuration says.
        retries: How often a call that raises is tried again. (A call whose worker dies is tried again anyway, as
            often as the scheduler's setting ``distributed.scheduler.allowed-failures`` says: 3.)
        resources: What each call needs of its worker, as in ``{"GPU": 1}``. Calls that no worker can serve wait.
        window: Most calls on the scheduler at once. More wait here, in order.
        connect_timeout: Seconds for reaching the scheduler, at the first call or on entering the block.
    Attributes:
        runs_coroutines: An ``async def`` function may be submitted as it is.
    Raises:
        ModuleNotFoundError: Dask is not installed.
        ValueError: the address is none, or an option is out of range.
    Thread safety: any thread, with or without a loop; nothing but ``connect``, ``shutdown`` and ``with`` waits, and
    these refuse on a thread that runs a loop. Callbacks of the futures run on the thread that serves the cluster, and
    must not block.

    .. versionadded:: 0.3
    """

    runs_coroutines: ClassVar[bool] = True

    def __init__(
        self,
        address: str,
        *,
        retries: int = 0,
        resources: dict[str, float] | None = None,
        window: int = WINDOW,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        if window < 1 or retries < 0 or not connect_timeout > 0:
            raise ValueError(
                "DaskOffload needs window >= 1, retries >= 0 and connect_timeout > 0; got"
                f" window={window!r}, retries={retries!r}, connect_timeout={connect_timeout!r}"
            )
        self._address = _address.parse(address).address
        _dask.require()
        self._retries = retries
        self._resources = dict(resources or {})
        self._connect_timeout = connect_timeout
        self._pid = os.getpid()
        self._lock = _prims.Lock()
        self._state: State = "new"
        self._window: Window[Call[Any]] = Window(window)
        self._error: ClusterError | None = None  # why it is lost
        self._connected = Completion[None]()
        self._ended = Completion[None]()
        self._link = Link(self)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make one from a string as in ``POLYLOOP_OFFLOAD``: ``dask:tcp://host:port?retries=2&resources.GPU=1``.

        ``dask:host:port`` and ``tcp://host:port`` are enough.

        Raises:
            ValueError: it is no such address, or an option is unknown or out of range.
        """
        target = _address.parse(url)
        return cls(target.address, **target.options)

    def __repr__(self) -> str:
        return (
            f"<DaskOffload {self._address!r} {self._state}"
            f" window={self.window} in_flight={self.in_flight} waiting={self.waiting}>"
        )

    def __reduce__(self) -> Any:
        """Where a function that refers to it is sent, another one like it takes its place; it connects when used."""
        return _remake, (type(self), self._address, self._retries, self._resources, self.window, self._connect_timeout)

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        return self._address

    @property
    def window(self) -> int:
        """Most calls on the scheduler at once."""
        return self._window.size

    @property
    def in_flight(self) -> int:
        """Calls that are on the scheduler now."""
        return self._window.out

    @property
    def waiting(self) -> int:
        """Calls that wait here for room in the window."""
        return self._window.waiting

    # Work

    @overload
    def submit[**P, T](
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    @overload
    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker.

        Returns:
            Its future. What ``fn`` raised comes back as it was, with the frames of the worker in its traceback; a
            result or an argument that does not pickle fails the call.
        Raises:
            RuntimeClosedError: the executor was shut down; a ``RuntimeError``, as of any executor.
            ClusterError: the cluster could not be reached, or was lost (``ClusterLostError``); the executor is of no
                use any more. Calls that were submitted before fail with the same.
        Cancellation: ``cancel()`` of the future works until the call is done. A call that waits in the window is never
        made; one that was sent is withdrawn if no worker has begun it, and else runs to its end there, unheard.
        Thread safety: any thread. Calls from one thread are sent in their order.
        """
        call = Call[Any](self, fn, args, kwargs)
        self._admit(call)
        return call

    def _admit(self, call: Call[Any] | None) -> None:
        """Queue a call, if any; the first one starts the link."""
        if self._is_the_parents():
            raise ClusterLostError(f"{self!r} belongs to the parent process; make a new one in this process")
        with self._lock:
            refusal = self._refusal_locked()
            first = self._state == "new"
            if refusal is None:
                self._state = "open"
                if call is not None:
                    self._window.add(call)
        if refusal is not None:
            raise refusal
        if first:
            self._link.start()
        else:
            self._link.wake()

    def _is_the_parents(self) -> bool:
        """Whether this is a forked process: its copy has no thread, and perhaps a lock that nobody will release."""
        return self._pid != os.getpid()

    def _refusal_locked(self) -> Exception | None:
        if self._state == "lost":
            assert self._error is not None
            return type(self._error)(*self._error.args)  # each its own: two threads must not raise one object
        if self._state in ("closing", "closed"):
            return RuntimeClosedError(f"cannot submit to {self!r}: it was shut down; make a new one")
        return None

    def _cancel(self, call: Call[Any]) -> bool:
        with self._lock:
            if call.fate != "pending":
                return call.fate == "cancelled"
            was_out = self._settle_locked(call, "cancelled")
        call.say_cancelled()
        if was_out:
            self._link.withdraw(call)
        self._link.wake()  # for the room in the window, or for the end
        return True

    def _settle_locked(self, call: Call[Any], fate: Literal["cancelled", "done"]) -> bool:
        call.fate = fate
        call.work = None
        return self._window.remove(call)

    # The life of it

    def connect(self) -> None:
        """Connect now instead of at the first call, and wait for it; ``with`` does this.

        Raises:
            ClusterError: there is no scheduler at the address.
            RuntimeClosedError: the executor was shut down.
            BlockingCallError: this thread runs a loop; use ``aconnect`` there.
        """
        refuse_on_loop_thread("DaskOffload.connect()", "await offload.aconnect()")
        self._admit(None)
        self._connected._block(None, ".connect()")
        self._connected._outcome()

    async def aconnect(self) -> None:
        """``connect`` for async code.

        Cancellation: the connecting goes on.
        """
        self._admit(None)
        await self._connected

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and disconnect when those there are are done.

        Args:
            wait: Wait for that.
            cancel_futures: Cancel the calls that were not sent yet.
        Raises:
            BlockingCallError: ``wait`` on a thread that runs a loop, and it was not over; use ``aclose`` there. The
                shutdown goes on.
        """
        self._begin_shutdown(cancel_futures)
        if wait and not self._ended.done() and not self._is_the_parents():
            refuse_on_loop_thread("DaskOffload.shutdown()", "await offload.aclose()")
            self._ended._block(None, ".shutdown()")

    async def aclose(self, *, cancel_futures: bool = False) -> None:
        """``shutdown`` for async code.

        Cancellation: the shutdown goes on.
        """
        self._begin_shutdown(cancel_futures)
        if not self._is_the_parents():
            await self._ended

    def _begin_shutdown(self, cancel_futures: bool) -> None:
        if self._is_the_parents():
            return
        with self._lock:
            unused = self._state == "new"
            if self._state in ("new", "open"):
                self._state = "closed" if unused else "closing"
            dropped = self._window.those_waiting() if cancel_futures else []
        for call in dropped:
            call.cancel()
        if unused:
            self._connected._complete(None, RuntimeClosedError(f"{self!r} was shut down before it had connected"))
            self._ended._complete(None)
        self._link.wake()

    def __enter__(self) -> Self:
        refuse_on_loop_thread("with DaskOffload()", "async with DaskOffload()")
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        await self.aconnect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # For the link, on its thread

    def _next(self) -> Call[Any] | None:
        """The next call to send, if there is one and room for it."""
        with self._lock:
            return self._window.next()

    def _is_over(self) -> bool:
        with self._lock:
            return self._state == "lost" or (self._state == "closing" and not self._window)

    def _finish(self, call: Call[Any], result: Any, exc: BaseException | None = None) -> None:
        """End a call that was sent, unless it has been cancelled."""
        with self._lock:
            if call.fate != "pending":
                return
            self._settle_locked(call, "done")
        _complete(call, result, exc)

    def _lose(self, error: ClusterError) -> None:
        """End all calls with ``error``, and take no more."""
        with self._lock:
            if self._state in ("lost", "closed"):
                return
            self._state = "lost"
            self._error = error
            calls = self._window.all()
            for call in calls:
                self._settle_locked(call, "done")
        for call in calls:
            _complete(call, None, type(error)(*error.args))

    def _abandon(self) -> None:
        """Cancel all calls: the program ends. Any thread."""
        with self._lock:
            if self._state not in ("open", "closing"):
                return
            self._state = "closing"
            calls = self._window.all()
        for call in calls:
            call.cancel()
        self._link.wake()

    def _has_ended(self) -> None:
        """The link is gone."""
        with self._lock:
            if self._state != "lost":
                self._state = "closed"
        self._ended._complete(None)


def _complete(call: Call[Any], result: Any, exc: BaseException | None) -> None:
    """Complete a future whose fate is set; its callbacks run here."""
    call.set_running_or_notify_cancel()
    if exc is None:
        call.set_result(result)
    else:
        call.set_exception(exc)


def _remake(
    kind: type[DaskOffload], address: str, retries: int, resources: dict[str, float], window: int, timeout: float
) -> DaskOffload:
    return kind(address, retries=retries, resources=resources, window=window, connect_timeout=timeout)
