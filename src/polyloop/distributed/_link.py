"""The thread that serves a ``DaskOffload``: it owns Dask's client, the client's loop, and every future of Dask's.

Why no wake-up is lost: whoever has changed something takes ``_woken`` from ``False`` to ``True``, or leaves it if it is
``True`` already; whoever changes it posts ``_on_wake``, which sets it back *before* it looks. So a change that was made
before a look is seen by it, and one that is made later posts again. Before the loop exists, and after it is closed,
there is nothing to wake: the thread looks once when it is connected, and it ends only after a look that found nothing.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from polyloop._core import _prims
from polyloop._core._errors import ClusterError, ClusterLostError, WorkerLostError
from polyloop._core._port import logger
from polyloop.distributed import _dask, _registry

if TYPE_CHECKING:
    from polyloop.distributed._offload import Call, DaskOffload

#: One message to the scheduler has at most so many calls, and about so many bytes; between two, results are served.
_BATCH_CALLS = 100
_BATCH_BYTES = 1 << 20

#: Seconds for telling the scheduler that we go. A guess: it takes milliseconds.
_CLOSE_TIMEOUT = 2.0


class Link:
    """One connection. ``start``, ``wake`` and ``withdraw`` are for any thread, all else for its own."""

    def __init__(self, offload: "DaskOffload") -> None:
        self._offload = offload
        self._lock = _prims.Lock()  # guards _woken and _loop
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None  # while it runs
        self.thread: _prims.Thread | None = None  # set by start()
        # From here on for the link's own thread.
        self._dask: _dask.Dask
        self._client: Any = None  # once connected
        self._over: asyncio.Future[None]
        self._sent: dict[Call[Any], tuple[Any, asyncio.Task[None]]] = {}  # Dask's future, and who waits for it
        self._errands: set[asyncio.Task[Any]] = set()

    # Any thread

    def start(self) -> None:
        """Start the thread. Once."""
        _registry.add(self._offload)
        try:
            self.thread = _prims.start_thread(self._run, f"polyloop-dask-{self._offload.address}")
        except BaseException as exc:
            self._end(ClusterError(f"cannot start a thread for the cluster at {self._offload.address}: {exc}"))
            raise

    def wake(self) -> None:
        """Let the thread look at what has changed."""
        with self._lock:
            loop = self._loop
            if loop is None or self._woken:
                return
            self._woken = True
        _post(loop, self._on_wake)

    def withdraw(self, call: "Call[Any]") -> None:
        """Take a cancelled call back from the scheduler, if it has come there."""
        with self._lock:
            loop = self._loop
        if loop is not None:
            _post(loop, self._withdraw, call)

    # The thread

    def _run(self) -> None:
        error: ClusterError | None = None
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                try:
                    runner.run(self._serve())
                finally:
                    with self._lock:
                        self._loop = None
        except BaseException as exc:
            logger.critical("polyloop: the connection to %s failed", self._offload.address, exc_info=exc)
            error = ClusterLostError(f"the connection to the Dask scheduler at {self._offload.address} failed: {exc!r}")
        self._end(error)

    def _end(self, error: ClusterError | None) -> None:
        offload = self._offload
        if error is None and not offload._is_over():  # whatever has happened, no call waits for ever
            error = ClusterLostError(f"the connection to the Dask scheduler at {offload.address} has ended")
        if error is not None:
            offload._lose(error)
        if not offload._connected.done():
            with offload._lock:
                refusal = offload._refusal_locked()
            offload._connected._complete(None, refusal)
        _registry.discard(offload)
        offload._has_ended()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        with self._lock:
            self._loop = loop
        connecting = loop.create_task(self._connect())
        self._on_wake()
        await asyncio.wait((connecting, self._over), return_when=asyncio.FIRST_COMPLETED)
        if self._over.done():
            connecting.cancel()
            await asyncio.wait((connecting,), timeout=_CLOSE_TIMEOUT)
        if self._client is not None:
            self._offload._connected._complete(None)
            self._on_wake()
            await self._over
            await self._close()

    async def _connect(self) -> None:
        offload = self._offload
        client: Any = None
        try:
            self._dask = _dask.load()
            client = self._dask.Client(
                offload.address,
                asynchronous=True,
                set_as_default=False,
                timeout=offload._connect_timeout,
                name="polyloop",
            )
            self._client = await client
        except asyncio.CancelledError:  # it was shut down before it was used
            await client.__aexit__(asyncio.CancelledError, None, None)
            raise
        except ImportError as exc:
            self._lose(ClusterError(f"Dask does not work here, or not with the cluster at {offload.address}: {exc!r}"))
        except Exception as exc:
            error = ClusterError(
                f"no Dask scheduler could be reached at {offload.address} within {offload._connect_timeout:g} s"
                f" ({type(exc).__name__}: {exc}); is it running there ('dask scheduler') and is the address right?"
            )
            self._lose(error)

    async def _close(self) -> None:
        for _, following in self._sent.values():
            following.cancel()
        lost = self._client.status != "running"
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                if lost:
                    await self._drop()
                else:
                    await self._client.close()
        except Exception as exc:
            logger.debug("polyloop: the client of %s did not close: %r", self._offload.address, exc)

    async def _drop(self) -> None:
        """Close a client that has lost its scheduler: at once, and without its complaint about being disturbed."""
        dasks = logging.getLogger("distributed.client")
        quiet = _Quiet(_prims.get_ident())
        dasks.addFilter(quiet)
        try:
            await self._client.__aexit__(ClusterLostError, None, None)  # with an error it closes fast
        finally:
            dasks.removeFilter(quiet)

    # What it does when it is woken

    def _on_wake(self) -> None:
        with self._lock:
            self._woken = False
        if self._client is not None:
            self._send_next()
        if self._offload._is_over() and not self._over.done():
            self._over.set_result(None)

    def _send_next(self) -> None:
        """Send one batch of what waits; the next one after a turn of the loop."""
        batch: list[tuple[Call[Any], bytes]] = []
        size = 0
        while len(batch) < _BATCH_CALLS and size < _BATCH_BYTES:
            call = self._offload._next()
            if call is None:
                break
            payload = self._pickled(call)
            if payload is not None:
                batch.append((call, payload))
                size += len(payload)
        if batch:
            self._send(batch)
            self.wake()

    def _pickled(self, call: "Call[Any]") -> bytes | None:
        """The call as bytes, or ``None`` if it was cancelled meanwhile or does not pickle, which ends it."""
        from polyloop.distributed import _travel  # noqa: PLC0415 - it needs what Dask brings

        work, call.work = call.work, None
        if work is None:
            return None
        try:
            return _travel.dumps(work)
        except BaseException as exc:  # code of the user's ran: it is their exception, whatever it is
            exc.add_note(f"while the call of {call.name!r} was pickled for the cluster at {self._offload.address}")
            self._finish(call, None, exc)
            return None

    def _send(self, batch: "list[tuple[Call[Any], bytes]]") -> None:
        from polyloop.distributed import _remote  # noqa: PLC0415 - as above

        offload = self._offload
        if self._client.status != "running":  # noticed while nothing was under way
            self._lost(f"is gone (its client is {self._client.status})")
            return
        try:
            futures = self._client.map(
                _remote.run,
                [payload for _, payload in batch],
                key=[f"{call.name.strip('<>')}-{uuid4().hex}" for call, _ in batch],
                pure=False,
                retries=offload._retries or None,
                resources=offload._resources or None,
            )
        except Exception as exc:
            for call, _ in batch:
                self._finish(call, None, self._not_run(call, exc))
            return
        loop = asyncio.get_running_loop()
        for (call, _), future in zip(batch, futures, strict=True):
            self._sent[call] = (future, loop.create_task(self._follow(call, future)))

    async def _follow(self, call: "Call[Any]", future: Any) -> None:
        """Wait for a call that was sent, and end it."""
        from polyloop.distributed import _travel  # noqa: PLC0415 - as above

        try:
            payload = await future
        except self._dask.CancelledError as exc:
            self._cancelled_by_dask(call, exc)
        except asyncio.CancelledError:
            raise
        except _travel.Failure as exc:
            self._finish(call, None, exc.unpack())
        except self._dask.KilledWorker as exc:
            self._finish(call, None, self._worker_lost(call, exc))
        except Exception as exc:
            self._finish(call, None, self._not_run(call, exc))
        else:
            self._bring(call, payload)
        finally:
            self._sent.pop(call, None)

    def _bring(self, call: "Call[Any]", payload: bytes) -> None:
        """End a call with its result."""
        from polyloop.distributed import _travel  # noqa: PLC0415 - as above

        try:
            result = _travel.loads(payload)
        except BaseException as exc:  # as in _pickled
            exc.add_note(f"while the result of {call.name!r} was unpickled: the code it uses must be here too")
            self._finish(call, None, exc)
        else:
            self._finish(call, result)

    def _finish(self, call: "Call[Any]", result: Any, exc: BaseException | None = None) -> None:
        self._offload._finish(call, result, exc)
        self.wake()  # there is room in the window

    def _cancelled_by_dask(self, call: "Call[Any]", exc: BaseException) -> None:
        reason = getattr(exc, "reason", None)
        if reason == "scheduler-connection-lost":
            self._lost("is gone")
        else:  # the cluster was restarted, or another client has cancelled it
            self._finish(call, None, ClusterError(f"the call of {call.name!r} was cancelled on the cluster: {reason}"))

    def _not_run(self, call: "Call[Any]", exc: Exception) -> ClusterError:
        error = ClusterError(
            f"the call of {call.name!r} could not be run by the cluster at {self._offload.address}: {exc!r};"
            " do the scheduler and the workers have polyloop, in the versions of Python and Dask that are used here?"
        )
        error.__cause__ = exc
        return error

    def _worker_lost(self, call: "Call[Any]", exc: Any) -> WorkerLostError:
        error = WorkerLostError(
            f"every worker of {self._offload.address} that ran the call of {call.name!r} died under it:"
            f" {exc.allowed_failures + 1}, the last one at {exc.last_worker.address}; their logs may say why"
            " (often it is the memory)"
        )
        error.__cause__ = exc
        return error

    def _lost(self, what: str) -> None:
        self._lose(
            ClusterLostError(
                f"the Dask scheduler at {self._offload.address} {what}: calls that were not done are lost;"
                " make a new DaskOffload when it is back"
            )
        )

    def _lose(self, error: ClusterError) -> None:
        self._offload._lose(error)
        if not self._over.done():
            self._over.set_result(None)

    def _withdraw(self, call: "Call[Any]") -> None:
        entry = self._sent.pop(call, None)
        if entry is None:  # it was not sent after all, or is done
            return
        future, following = entry
        following.cancel()
        self._do(self._client.cancel([future]))

    def _do(self, coro: Coroutine[Any, Any, Any]) -> None:
        """Run an errand that nobody waits for."""
        task = asyncio.ensure_future(coro)
        self._errands.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._errands.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.debug("polyloop: %s: %r", self._offload.address, exc)


class _Quiet(logging.Filter):
    """Drops what one thread logs."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self._thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread


def _post(loop: asyncio.AbstractEventLoop, fn: Any, *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(fn, *args)
    except RuntimeError:  # it has been closed meanwhile, after a last look
        pass
