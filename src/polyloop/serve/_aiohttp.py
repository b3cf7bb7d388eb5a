"""The engine for aiohttp applications: an ``AppRunner`` on each loop, without its sites, which accept by themselves."""

import asyncio
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

from aiohttp import WSCloseCode, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.typedefs import Handler

from polyloop._core import _prims
from polyloop._core._errors import ServerStartError
from polyloop.serve._access_log import AccessLog, LoopLog
from polyloop.serve._asgi import NAMED, Health
from polyloop.serve._idle import DRAIN_LOOK, IDLE_GRACE, LOOK, Waiting
from polyloop.serve._station import ProtocolFactory

#: Seconds that aiohttp gets for what is left of its connections when the drain is over.
_LAST_STEPS = 0.5

_TAKEN = web.AppKey("polyloop.taken", bool)
_taking = _prims.Lock()  # guards _TAKEN, of all applications


class _Runner(web.AppRunner):
    """An ``AppRunner`` whose application hears of the shutdown when the drain begins, and only then."""

    __slots__ = ("_told",)

    async def shutdown(self) -> None:
        if not getattr(self, "_told", False):
            self._told = True
            await super().shutdown()


class _AccessLogger(AbstractAccessLogger):
    """aiohttp's word of an answer, as a line of this loop's log."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        peer = request.transport and request.transport.get_extra_info("peername")
        whom = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else request.remote or ""
        version = f"{request.version.major}.{request.version.minor}"
        self.logger.info('%s - "%s %s HTTP/%s" %d', whom, request.method, request.path_qs, version, response.status)


class AiohttpEngine:
    """aiohttp on one loop; see ``Engine``.

    aiohttp does not tell whether a part of a request's head has come. So in the drain a connection has ``IDLE_GRACE``
    for a whole head, also where it has begun one.
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        *,
        settings: Mapping[str, Any],
        health_path: str | None,
        health: Health,
        access_log: AccessLog | None,
        head_timeout: float | None,
    ) -> None:
        self._factory = factory
        self._settings = settings
        self._health_path = health_path
        self._health = health
        self._access_log = access_log
        self._head_timeout = head_timeout
        self._runner: _Runner
        self._log: LoopLog | None = None
        self._draining = False
        self._answered = 0
        self._in_flight: dict[asyncio.Task[Any], web.Request] = {}  # changed by the loop's thread, read by anyone
        self._last: dict[Any, object] = {}  # of each connection a mark of its last request; the loop's thread
        self._websockets = weakref.WeakSet[web.WebSocketResponse]()  # those that are open; the loop's thread
        self._waiting = Waiting[Any]()
        self._ticker: asyncio.Task[None] | None = None

    @property
    def requests(self) -> int:
        """Requests that were answered. Any thread."""
        return self._answered

    def busy_with(self, task: "asyncio.Task[Any] | None") -> str:
        """Say which request a task of this loop answers. Any thread."""
        if task is not None and (request := self._in_flight.get(task)) is not None:
            return f"which answers {_describe(request)}"
        requests = list(self._in_flight.copy().values())
        if not requests:
            return "and no request is in flight"
        return f"while these are in flight: {', '.join(map(_describe, requests[:NAMED]))}"

    async def start(self) -> ProtocolFactory:
        """Make the application, run its startup, and return what makes a connection's protocol."""
        try:
            app = self._factory()
            if asyncio.iscoroutine(app):
                app = await app
        except Exception as exc:
            raise ServerStartError(f"the factory {self._factory!r} could not make the application: {exc!r}") from exc
        if not isinstance(app, web.Application):
            raise ServerStartError(f"the factory {self._factory!r} must make an aiohttp.web.Application, got {app!r}")
        _take(app, self._factory)

        @web.middleware
        async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._gate(request, handler)

        app.middlewares.insert(0, gate)
        app.on_response_prepare.append(self._prepare)
        loop = asyncio.get_running_loop()
        if self._access_log is not None:
            self._log = self._access_log.for_loop(loop)
        self._runner = _Runner(
            app,
            access_log_class=_AccessLogger,
            access_log=self._log,
            shutdown_timeout=_LAST_STEPS,
            **self._settings,
        )
        try:
            await self._runner.setup()
        except BaseException as exc:
            await self._runner.cleanup()  # what had begun already
            if not isinstance(exc, Exception):
                raise
            raise ServerStartError(f"the application {app!r} refused to start: {exc!r}") from exc
        server = self._runner.server
        assert server is not None
        self._ticker = loop.create_task(self._tick(), name="polyloop http ticker")
        return server

    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._health_path is not None and request.path.startswith(self._health_path):
            what = request.path[len(self._health_path) :]
            if what in ("", "/ready", "/live"):
                ready, details = self._health()
                return web.json_response(details, status=200 if ready or what == "/live" else 503)
        task = asyncio.current_task()
        assert task is not None
        self._in_flight[task] = request
        self._last[request.protocol] = object()  # not the request, and its body, until there is another
        try:
            return await handler(request)
        finally:
            del self._in_flight[task]
            self._answered += 1

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """An answer begins."""
        if isinstance(response, web.WebSocketResponse):
            self._websockets.add(cast("Any", response))
        elif self._draining and not getattr(request.protocol, "_messages", None):  # else the client asks for more
            response.force_close()
            response.headers["Connection"] = "close"  # aiohttp has decided on its headers already

    async def _tick(self) -> None:
        """Once a second: the clients that are too slow with their first request."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK)
            connections = self._connections()
            self._last = {one: request for one, request in self._last.items() if one in connections}
            new: dict[Any, object] = {one: None for one in connections if one not in self._last}
            if self._head_timeout is not None:
                for connection in self._waiting.late(loop.time(), new, self._head_timeout):
                    connection.force_close()

    def _connections(self) -> set[Any]:
        server = self._runner.server
        return set() if server is None else set(server.connections)

    def begin_drain(self) -> None:
        """Let connections go: each when its answer says so, or when no request came for a moment."""
        self._draining = True
        self._waiting = Waiting[Any]()
        if self._ticker is not None:
            self._ticker.cancel()

    async def drain(self, connections: Callable[[], int]) -> None:
        """Tell the application and its WebSockets, and wait for connections and requests to end."""
        loop = asyncio.get_running_loop()
        await self._runner.shutdown()
        closing: dict[web.WebSocketResponse, asyncio.Task[bool]] = {}
        try:
            while connections() or self._in_flight:
                for one in set(self._websockets) - set(closing):
                    if not one.closed:
                        closing[one] = loop.create_task(one.close(code=WSCloseCode.SERVICE_RESTART))
                for connection in self._waiting.late(loop.time(), self._idle(), IDLE_GRACE):
                    connection.force_close()
                await asyncio.sleep(DRAIN_LOOK)
        finally:
            for task in closing.values():
                task.cancel()

    def _idle(self) -> dict[Any, object]:
        """Connections without a request that is handled, or an answer that is sent; each with the mark of its last."""
        busy = {request.protocol for request in self._in_flight.values()}
        return {
            one: self._last.get(one)
            for one in self._connections() - busy
            if not getattr(one, "_request_in_progress", False)
        }

    def cut(self) -> list[str]:
        """Cancel the requests that are still in flight."""
        names = [_describe(request) for request in self._in_flight.values()]
        for task in list(self._in_flight):
            task.cancel("the server's time to drain was over")
        return names

    async def stop(self) -> str | None:
        """Run the application's cleanup."""
        if self._ticker is not None:
            self._ticker.cancel()
        try:
            await self._runner.cleanup()
        finally:
            if self._log is not None:
                self._log.close()
        return None


def _take(app: web.Application, factory: object) -> None:
    """Refuse an application that another loop, or anybody else, has or had: aiohttp says it in words of its own."""
    with _taking:
        taken = app.frozen or _TAKEN in app
        if not taken:
            app[_TAKEN] = True
    if taken:
        raise ServerStartError(
            f"the factory {factory!r} must make a new application on each loop, since aiohttp ties each to one;"
            f" it returned {app!r} again"
        )


def _describe(request: web.Request) -> str:
    return f"{request.method} {request.path!r} for {request.remote}"
