"""``serve``: a web server as a whole program, with a runtime of its own, signals, and an exit that is bounded.

The calling thread runs a small control loop, which owns the signals and runs none of the application's code, so that
a loop that hangs does not keep the server from being stopped. The workers are threads beside it.

SIGTERM and SIGINT stop the server in good order; a second one ends the wait for requests, a third one the process.
SIGHUP opens the access log anew. SIGUSR2 starts this program again with the same listening sockets; when that serves,
this one stops. Off the main thread no handler is installed: ``on_ready`` gets the server, whose ``shutdown`` any thread
may call.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Generator, Mapping
from types import FrameType
from typing import Any, Unpack

from polyloop._core import _prims
from polyloop._core._errors import ServerStartError
from polyloop._core._worker import LoopFactory
from polyloop.runtime._runtime import Runtime
from polyloop.serve import _successor, _systemd
from polyloop.serve._accepted import logger
from polyloop.serve._asgi_server import ASGIServer
from polyloop.serve._options import ServeOptions
from polyloop.serve._report import ServeReport
from polyloop.serve._web import WebServer

#: Seconds that the workers get to end when the server has: they have nothing left to do.
_RUNTIME_TIMEOUT = 2.0

#: Seconds that a successor has until it serves.
_SUCCESSOR_TIMEOUT = 60.0


def serve(
    app: Callable[..., Any] | str,
    *,
    factory: bool = False,
    loops: int | None = None,
    loop_factory: LoopFactory | None = None,
    uvicorn: Mapping[str, Any] | None = None,
    on_ready: Callable[[WebServer], object] | None = None,
    **options: Unpack[ServeOptions],
) -> ServeReport:
    """Serve an ASGI application on every core, in one process and on one port, until a signal stops it.

    Args:
        app, factory, uvicorn, options: See ``ASGIServer``.
        loops, loop_factory: See ``Runtime``.
        on_ready: Called with the server when it accepts connections; its ``shutdown`` stops it from any thread.
    Returns:
        How it ended.
    Raises:
        OSError: the address cannot be had.
        ServerStartError: the application cannot be made, or refused to start.
        RuntimeError: this thread runs a loop; use ``ASGIServer`` there.
        TypeError, ValueError: an option makes no sense.
    Thread safety: any thread without a loop; signals are handled on the main thread only.

    .. versionadded:: 0.4
    """

    def make(extra: ServeOptions) -> WebServer:
        merged = options.copy()
        merged.update(extra)
        return ASGIServer(app, factory=factory, uvicorn=uvicorn, **merged)

    return run_server(make, options, loops=loops, loop_factory=loop_factory, on_ready=on_ready)


def run_server(
    make: Callable[[ServeOptions], WebServer],
    options: ServeOptions,
    *,
    loops: int | None,
    loop_factory: LoopFactory | None,
    on_ready: Callable[[WebServer], object] | None,
) -> ServeReport:
    """Run a web server as a whole program; see ``serve``."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("serve() runs loops of its own, and this thread runs one already; use ASGIServer there")
    if options.get("runtime") is not None:
        raise ValueError("serve() makes a runtime of its own; use ASGIServer(runtime=...) to serve on yours")
    runtime = Runtime(loops=loops, loop_factory=loop_factory, shutdown_timeout=_RUNTIME_TIMEOUT)
    extra: ServeOptions = {"runtime": runtime}
    handed_over = _successor.handed_over() or _systemd.inherited_sockets()
    if handed_over:
        extra["sockets"] = handed_over
        extra["reuse_port"] = False  # what is handed over is one socket for each address
    try:
        server = make(extra)
    except BaseException:
        for sock in handed_over:
            sock.close()
        raise
    return asyncio.run(_Control(server, runtime, on_ready).run())


class _Control:
    """One call of ``serve``. Everything runs on the calling thread's control loop."""

    def __init__(self, server: WebServer, runtime: Runtime, on_ready: Callable[[WebServer], object] | None) -> None:
        self._server = server
        self._runtime = runtime
        self._on_ready = on_ready
        self._signals = 0
        self._starting: asyncio.Task[Any] | None = None
        self._restarting: asyncio.Task[None] | None = None

    async def run(self) -> ServeReport:
        with self._signal_handlers():
            async with self._runtime:
                self._starting = asyncio.create_task(self._server.start())
                try:
                    await self._starting
                except asyncio.CancelledError:
                    if self._signals:
                        return ServeReport()  # stopped before it served
                    raise
                finally:
                    self._starting = None
                return await self._serve()

    async def _serve(self) -> ServeReport:
        _systemd.notify("READY=1")
        _successor.report_ready()
        watchdog = asyncio.create_task(self._feed_watchdog())
        try:
            if self._on_ready is not None:
                self._on_ready(self._server)
            return await self._server.wait_closed()
        except BaseException:
            self._server.shutdown(timeout=0)
            await self._server.wait_closed()
            raise
        finally:
            watchdog.cancel()
            if self._restarting is not None:  # bounded: a successor that does not serve is killed in the end
                self._restarting.cancel()
                await asyncio.wait([self._restarting])

    async def _feed_watchdog(self) -> None:
        """Tell systemd that this lives, as long as any loop does."""
        interval = _systemd.watchdog_interval()
        while interval is not None:
            if not all(load.hanging for load in self._server.loads):
                _systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval)

    # Signals

    @contextlib.contextmanager
    def _signal_handlers(self) -> Generator[None]:
        if not _prims.is_main_thread():
            yield
            return
        handlers = {"SIGINT": self._stop, "SIGTERM": self._stop, "SIGBREAK": self._stop}
        handlers |= {"SIGHUP": self._server.reopen_logs, "SIGUSR2": self._restart}
        loop = asyncio.get_running_loop()
        installed: list[signal.Signals] = []
        for name, handler in handlers.items():
            if hasattr(signal, name):
                number = getattr(signal, name)
                with contextlib.suppress(NotImplementedError):  # the proactor loop of Windows
                    loop.add_signal_handler(number, handler)
                    installed.append(number)
                    if handler == self._stop:  # counted at once, whatever the loop is busy with; it wakes the loop too
                        signal.signal(number, self._count)
        try:
            yield
        finally:
            for number in installed:
                loop.remove_signal_handler(number)

    def _count(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self._signals += 1
        if self._signals > 2:
            os.write(2, b"polyloop: the third signal ends the process at once\n")
            os._exit(1)

    def _stop(self) -> None:
        """The loop's word of it, a moment later."""
        _systemd.notify("STOPPING=1")
        if self._restarting is not None:  # a successor that does not serve yet is ended
            self._restarting.cancel()
        if self._starting is not None and self._starting.cancel():
            return
        self._server.shutdown(timeout=None if self._signals < 2 else 0)

    def _restart(self) -> None:
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._hand_over())

    async def _hand_over(self) -> None:
        """Start this program again; when that serves, stop."""
        if self._server.state != "serving":
            logger.warning(
                "polyloop: no successor is started: this server does not serve, it is %s", self._server.state
            )
            return
        logger.info("polyloop: starting a successor on the same sockets")
        try:
            successor = _successor.Successor(self._server.sockets)
            try:
                await successor.ready(_SUCCESSOR_TIMEOUT)
            except asyncio.CancelledError:
                await successor.end()
                raise
        except (OSError, ServerStartError) as exc:
            logger.error("polyloop: the successor does not serve, so this process goes on: %s", exc)
            return
        logger.info("polyloop: the successor serves; this process stops")
        self._server.shutdown(handing_over=True)
