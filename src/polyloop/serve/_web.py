"""A web server: engines on all loops behind one ``Server``, from their start to the end of the drain.

Its life, each step under a deadline: *new*; *starting*: bind, ``on_start``, the applications; *serving*; *draining*:
the doors are closed, requests end or are cancelled; *stopping*: the applications shut down, ``on_stop``; *closed*.
One task on the loop that called ``start`` sees to it. ``shutdown`` tells that task, from any thread.

Why the end cannot hang: every wait of it has a deadline (that of the requests comes nearer by ``shutdown(timeout=0)``);
a loop that does not answer is left behind and named in the report.
"""

import asyncio
import contextlib
import inspect
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import TracebackType
from typing import Any, Literal, Self

from polyloop._core import _prims
from polyloop._core._completion import Completion, all_done
from polyloop._core._errors import ServerStartError
from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port, current_port
from polyloop.offload import to_thread
from polyloop.serve._accepted import logger
from polyloop.serve._access_log import AccessLog
from polyloop.serve._engine import Engine
from polyloop.serve._idle import IDLE_GRACE
from polyloop.serve._listen import Listener, bind_tcp, bind_unix, check_listener, with_file
from polyloop.serve._options import Hook, Options
from polyloop.serve._places import places, start_on
from polyloop.serve._report import ServeReport
from polyloop.serve._server import LoopLoad, Server
from polyloop.serve._station import Tls

type State = Literal["new", "starting", "serving", "draining", "stopping", "closed"]

#: Seconds that requests which were cancelled at the deadline get to answer that.
_CUT_GRACE = 1.0

#: Seconds that a client has to answer TLS's goodbye; asyncio's 30 would hold up every stop.
_TLS_GOODBYE = 1.0


class WebServer:
    """A web server over all loops of a runtime; ``ASGIServer`` and ``AiohttpServer`` say what it serves.

    Use it as a context manager in a running runtime, or call ``start`` and, from any thread, ``shutdown``.

    .. versionadded:: 0.4
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._state: State = "new"
        self._server: Server | None = None
        self._listeners: Sequence[Listener] = ()
        self._engines: tuple[tuple[Port, Engine], ...] = ()
        self._access_log: AccessLog | None = None
        self._on_stop: Hook | None = None  # set when on_start has succeeded: one undoes the other
        self._asked = Completion[None]()  # to stop
        self._report = Completion[ServeReport]()
        self._life: asyncio.Task[None] | None = None
        self._lock = _prims.Lock()  # guards _deadline and _handing_over, and that _asked is completed once
        self._deadline: float | None = None
        self._handing_over = False
        self._hurry: Callable[[], object] | None = None  # makes the wait of this moment end; set by the life's loop

    def _make_engine(self) -> Engine:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state} {self._server!r}>"

    # Seen from outside: any thread

    @property
    def state(self) -> State:
        """``"new"``, ``"starting"``, ``"serving"``, ``"draining"``, ``"stopping"`` or ``"closed"``."""
        return self._state

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets, to be looked at; empty unless it serves."""
        return () if self._server is None else self._server.sockets

    @property
    def loads(self) -> tuple[LoopLoad, ...]:
        """What each loop does; empty before the start."""
        return () if self._server is None else self._server.loads

    @property
    def requests(self) -> int:
        """Requests that were answered."""
        return sum(engine.requests for _, engine in self._engines)

    def health(self) -> tuple[bool, Mapping[str, object]]:
        """Whether requests are welcome, and what the health endpoint says of the loops."""
        loops = [{"loop": load.loop, "connections": load.connections, "hanging": load.hanging} for load in self.loads]
        ready = self._state == "serving" and not all(load["hanging"] for load in loops)
        return ready, {"state": self._state, "requests": self.requests, "loops": loops}

    def shutdown(self, timeout: float | None = None, *, handing_over: bool = False) -> None:
        """Stop: accept no more, answer what was asked, shut the applications down.

        Returns at once; ``wait_closed`` waits. A second call may bring the deadline forward.

        Args:
            timeout: Seconds that requests in flight get; ``graceful_timeout`` by default.
            handing_over: Somebody else listens on the same sockets: connections that nobody has accepted yet are left
                to them, and a unix socket's file too.
        """
        seconds = self._options.graceful_timeout if timeout is None else timeout
        deadline = _prims.monotonic() + seconds
        with self._lock:
            first = not self._asked.done()
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            self._handing_over |= handing_over
            if first:
                self._asked._complete(None)
        hurry = self._hurry
        if not first and hurry is not None:
            hurry()

    def reopen_logs(self) -> None:
        """Open the access log's file anew, after it was moved away."""
        if self._access_log is not None:
            self._access_log.reopen()

    async def wait_closed(self) -> ServeReport:
        """Wait until the server has stopped.

        Cancellation: it serves on.
        """
        return await self._report

    # Start

    async def start(self) -> Self:
        """Start to serve; returns when connections are accepted.

        Raises:
            OSError: the address cannot be had.
            ServerStartError: an application cannot be made, or refuses to start.
            RuntimeError: it was started before.
        """
        if self._state != "new":
            raise RuntimeError(f"{self!r} was started before; make a new one")
        self._state = "starting"
        try:
            self._listeners = await self._bind()
            await self._start(self._listeners)
        except BaseException as exc:
            try:
                await self._undo_start()
            finally:
                self._state = "closed"
                self._report._complete(None, exc)
            raise
        self._state = "serving"
        self._life = asyncio.get_running_loop().create_task(self._see_to_the_end(), name=repr(self))
        assert self._server is not None
        self._server._failed._add_waiter(self.shutdown)  # nobody comes in any more: end, and say so
        return self

    async def _bind(self) -> list[Listener]:
        options = self._options
        if options.sockets:
            return [_taken_over(sock, options.uds) for sock in options.sockets]
        if options.uds is not None:
            return [bind_unix(options.uds, 0o666)]
        sockets = await bind_tcp(options.host, options.port, backlog=options.backlog, reuse_port=options.reuse_port)
        return [Listener(sock) for sock in sockets]

    async def _start(self, listeners: Sequence[Listener]) -> None:
        options = self._options
        if options.access_log is not False:
            self._access_log = AccessLog(None if options.access_log is True else options.access_log)
        if options.on_start is not None:
            try:
                await _call(options.on_start)
            except Exception as exc:
                logger.exception("polyloop: on_start failed")
                raise ServerStartError(f"on_start failed: {exc!r}") from exc
        self._on_stop = options.on_stop
        ports = places(options.runtime)
        engines = [(port, self._make_engine()) for port in ports]
        handles = [start_on(port, engine.start(), f"start of {self!r}") for port, engine in engines]
        try:
            await self._all_started(handles)
        finally:
            pairs = zip(engines, handles, strict=True)
            self._engines = tuple(engine for engine, handle in pairs if _has_result(handle))
        # A failure before those that were cancelled because of it.
        factories = [handle.result() for handle in sorted(handles, key=lambda handle: handle.cancelled())]
        self._server = Server(
            ports,
            factories,
            listeners,
            backlog=options.backlog,
            tls=Tls() if options.ssl is None else Tls(options.ssl, options.ssl_handshake_timeout, _TLS_GOODBYE),
            limits=options.limits,
            reuse_port=options.reuse_port,
        )
        self._server._say_what_is_busy([engine.busy_with for _, engine in engines])
        await self._server.start_serving()

    async def _all_started(self, handles: "Sequence[TaskHandle[Any]]") -> None:
        """Wait for the applications. When one fails, the others get ``lifespan_timeout`` to come up, or to fail."""
        patience: float | None = None
        waits = {asyncio.ensure_future(_settled(handle)) for handle in handles}
        try:
            while waits:
                done, waits = await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                failed = [wait.result() for wait in done if not _has_result(wait.result())]
                if not done:
                    break
                if failed and patience is None:
                    patience = self._options.lifespan_timeout
                    reason = "it was cancelled" if failed[0].cancelled() else failed[0].exception()
                    logger.error("polyloop: an application did not start on %s: %s", failed[0].worker.name, reason)
        finally:
            for wait in waits:
                wait.cancel()
            late = [handle for handle in handles if not handle.done()]
            for handle in late:
                handle.cancel()
            await _bounded(all_done(late), self._options.lifespan_timeout)

    async def _undo_start(self) -> None:
        if self._server is None:
            for listener in self._listeners:
                listener.close()
        else:
            self._server.close()
        for failure in await self._stop_applications():
            logger.error("polyloop: after a start that failed: %s", failure)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        await self.wait_closed()

    # The end: the loop that called start

    async def _see_to_the_end(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):  # its loop ends: so does this
                await self._asked
            if not self._asked.done():
                self.shutdown(timeout=0)
            report = await self._end()
        except asyncio.CancelledError:
            report = self._cut_short()
        except BaseException as exc:
            self._state = "closed"
            self._report._complete(None, exc)
            raise
        self._state = "closed"
        self._report._complete(report)

    def _cut_short(self) -> ServeReport:
        """The runtime closes in the middle of the end, and takes the loops away."""
        if self._server is not None:
            self._server.close()
            self._server.abort_clients()
        if self._access_log is not None:
            self._access_log.close()
        return ServeReport(self.requests, failures=("its runtime was closed before the server had come to its end",))

    async def _end(self) -> ServeReport:
        server = self._server
        assert server is not None
        self._state = "draining"
        if self._handing_over:
            for listener in self._listeners:
                listener.keep_file()
        # With reuse_port only the sockets of the first loop are handed over: what waits at the others is ours to serve.
        server._close(take_waiting=not self._handing_over or self._options.reuse_port)
        await _bounded(server._doors_closed(), _CUT_GRACE)
        for port, engine in self._engines:
            port.post(engine.begin_drain)
        server._give_up_handshakes(IDLE_GRACE)
        drained = self._on_loops(lambda port, engine: engine.drain(server._connections_on(port)))
        await self._until_done(drained)
        cut, stuck = await self._cut(server, drained)
        self._state = "stopping"
        failures = [
            f"the drain on {port.name} failed: {handle.exception()!r}"
            for port, handle in drained.items()
            if handle.done() and not handle.cancelled() and handle.exception() is not None
        ]
        if server._failed.done():
            failures.append(f"accepting failed: {server._acceptor.failure!r}")
        failures += await self._stop_applications(stuck)
        if not stuck:
            await _bounded(server.wait_closed(), _CUT_GRACE)
        names = tuple(port.name for port in stuck)
        return ServeReport(self.requests, tuple(cut), names, tuple(failures))

    async def _until_done(self, handles: "dict[Port, TaskHandle[None]]") -> None:
        """Wait for the drain until its deadline, which may come nearer meanwhile."""
        home, loop = current_port(), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as window:

                def look_again() -> None:
                    left = (self._deadline or 0.0) - _prims.monotonic()
                    with contextlib.suppress(RuntimeError):  # it is over just now
                        window.reschedule(loop.time() + max(0.0, left))

                self._hurry = lambda: home.post(look_again)  # set before the deadline is read: see shutdown
                look_again()
                await all_done(handles.values())
        except TimeoutError:
            pass
        finally:
            self._hurry = None

    async def _cut(self, server: Server, drained: "dict[Port, TaskHandle[None]]") -> tuple[list[str], list[Port]]:
        """Cancel what is not done in time; say what that was, and which loops do not even hear of it."""
        late = {port for port, handle in drained.items() if not handle.done()}
        if not late:
            return [], []
        cuts = self._on_loops(lambda port, engine: _cut(engine), late)
        await _bounded(all_done(cuts.values()), _CUT_GRACE)
        await _bounded(all_done(drained[port] for port in late if cuts[port].done()), _CUT_GRACE)
        names: list[str] = []
        for port, handle in cuts.items():
            found = handle.result() if _has_result(handle) else []
            if not found and handle.done() and (left := server._connections_on(port)()):
                found = [f"{left} connections on {port.name}, which took their time over an answer or a request"]
            names += found
        begun: list[TaskHandle[Any]] = [*drained.values(), *cuts.values()]
        for one in begun:
            one.cancel()
        server.abort_clients()
        return names, [port for port in late if not cuts[port].done()]

    async def _stop_applications(self, stuck: Sequence[Port] = ()) -> list[str]:
        """Shut the applications down and call ``on_stop``; say what was wrong with that."""
        failures: list[str] = []
        patience = self._options.lifespan_timeout
        stops = self._on_loops(lambda port, engine: engine.stop(), {port for port, _ in self._engines} - set(stuck))
        await _bounded(all_done(stops.values()), patience)
        for port, handle in stops.items():
            if not handle.done():
                handle.cancel()
                failures.append(f"the application on {port.name} had not shut down after {patience:g} s")
            elif handle.cancelled():
                failures.append(f"the application on {port.name} was cancelled while it shut down")
            elif (exc := handle.exception()) is not None:
                logger.error("polyloop: the application on %s failed at its end", port.name, exc_info=exc)
                failures.append(f"the application on {port.name} failed at its end: {exc!r}")
            elif (wrong := handle.result()) is not None:
                failures.append(f"{wrong} on {port.name}")
        on_stop, self._on_stop = self._on_stop, None
        if on_stop is not None:
            try:
                async with asyncio.timeout(patience):
                    await _call(on_stop)
            except Exception as exc:
                logger.exception("polyloop: on_stop failed")
                failures.append(f"on_stop failed: {exc!r}")
        if self._access_log is not None:
            self._access_log.close()
        return failures

    def _on_loops[T](
        self, make: Callable[[Port, Engine], Coroutine[Any, Any, T]], ports: "AbstractSet[Port] | None" = None
    ) -> "dict[Port, TaskHandle[T]]":
        """Start a step of the end on each loop, or on these."""
        return {
            port: start_on(port, make(port, engine), f"end of {self!r}")
            for port, engine in self._engines
            if ports is None or port in ports
        }


def _taken_over(sock: socket.socket, uds: str | os.PathLike[str] | None) -> Listener:
    """A listener on a socket of the user's; the file of the unix socket that ``uds`` asks for is ours then."""
    check_listener(sock)
    ours = uds is not None and sock.getsockname() == os.fspath(uds)
    return with_file(sock) if ours else Listener(sock)


def _has_result(handle: TaskHandle[Any]) -> bool:
    return handle.done() and not handle.cancelled() and handle.exception() is None


async def _cut(engine: Engine) -> list[str]:
    return engine.cut()


async def _settled[T](handle: TaskHandle[T]) -> TaskHandle[T]:
    await all_done([handle])
    return handle


async def _call(hook: Hook) -> None:
    """Call a hook: on a thread, so that one that blocks holds up neither signals nor deadlines, unless it is async."""
    result = hook() if inspect.iscoroutinefunction(hook) else await to_thread(hook, on_cancel="abandon")
    if inspect.isawaitable(result):
        await result


async def _bounded(step: Awaitable[object], seconds: float) -> None:
    """Wait for a step of the end, and not for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await step
