"""The engine for ASGI applications: uvicorn's protocols and lifespan, one set of its objects on each loop.

Of uvicorn this uses ``Config``, ``ServerState``, the lifespan and the protocol classes, and not its server, which
accepts by itself. The objects of two loops share nothing but what the application shares.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from polyloop._core._errors import ServerStartError
from polyloop.serve._accepted import logger
from polyloop.serve._asgi import LAST_ANSWER, Gate, Health, Send, describe
from polyloop.serve._idle import DRAIN_LOOK, IDLE_GRACE, LOOK, Waiting
from polyloop.serve._station import ProtocolFactory
from polyloop.serve._uvicorn_settings import bounded

if TYPE_CHECKING:
    import uvicorn

    from polyloop.serve._access_log import AccessLog, LoopLog


class UvicornEngine:
    """uvicorn on one loop; see ``Engine``.

    Args:
        app: The application, or what makes it.
        factory: Whether ``app`` makes it: then each loop has its own.
        settings: Further settings of ``uvicorn.Config``.
        head_timeout: Seconds that a client has for the head of a request.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        factory: bool,
        settings: Mapping[str, Any],
        health_path: str | None,
        health: Health,
        access_log: "AccessLog | None",
        head_timeout: float | None,
    ) -> None:
        self._app = app
        self._factory = factory
        self._settings = settings
        self._health_path = health_path
        self._health = health
        self._access_log = access_log
        self._head_timeout = head_timeout
        self._server: uvicorn.Server
        self._gate: Gate | None = None
        self._log: LoopLog | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._waiting = Waiting[Any]()
        self._half_heads = Waiting[Any]()  # while it drains

    @property
    def requests(self) -> int:
        """Requests that were answered. Any thread."""
        return 0 if self._gate is None else self._server.server_state.total_requests

    def busy_with(self, task: "asyncio.Task[Any] | None") -> str:
        """Say which request a task of this loop answers. Any thread."""
        return "" if self._gate is None else self._gate.busy_with(task)

    # Start

    async def start(self) -> ProtocolFactory:
        """Make the application, run its startup, and return what makes a connection's protocol."""
        config: Any = self._configured()  # its types are those of uvicorn's own idea of ASGI
        gate = Gate(config.loaded_app, self._health_path, self._health, _more_waiting)
        config.loaded_app = gate
        server = self._server = _server_of(config)
        self._gate = gate
        await self._set_date()
        try:
            await server.lifespan.startup()
            if server.lifespan.should_exit:
                raise ServerStartError(f"the application {_name(self._app)} refused to start; the log says why")
        except BaseException:
            await gate.cancel_lifespan()
            raise
        if gate.lifespan_error is not None:
            logger.warning(
                "polyloop: %s raised in its startup and is served without a lifespan, as the ASGI specification asks"
                " for; uvicorn={'lifespan': 'on'} refuses to start instead",
                _name(self._app),
                exc_info=gate.lifespan_error,
            )
        loop = asyncio.get_running_loop()
        if self._access_log is not None:
            self._log = self._access_log.for_loop(loop)
        self._ticker = loop.create_task(self._tick(), name="polyloop http ticker")
        return self._protocol_factory(config, loop)

    def _configured(self) -> "uvicorn.Config":
        import uvicorn  # noqa: PLC0415 - an extra; see _uvicorn_settings

        app: Any = self._made() if self._factory else self._app
        try:
            config = uvicorn.Config(app, log_config=None, access_log=True, **self._settings)
            config.load()
        except SystemExit:
            raise ServerStartError(f"uvicorn could not load {_name(app)}; the log says why") from None
        except Exception as exc:
            raise ServerStartError(f"uvicorn could not load {_name(app)}: {exc!r}") from exc
        return config

    def _made(self) -> Any:
        """The application of this loop, from the factory."""
        try:
            app: Any = self._app()
        except Exception as exc:
            raise ServerStartError(f"the factory {_name(self._app)} could not make the application: {exc!r}") from exc
        if inspect.iscoroutine(app):
            app.close()
            raise ServerStartError(
                f"the factory {_name(self._app)} is async; an ASGI application's must not be: await in its lifespan"
            )
        if not callable(app):
            raise ServerStartError(f"the factory {_name(self._app)} must return an ASGI application, got {app!r}")
        return app

    def _protocol_factory(self, config: "uvicorn.Config", loop: asyncio.AbstractEventLoop) -> ProtocolFactory:
        make = bounded(config.http_protocol_class)
        state, app_state, log = self._server.server_state, self._server.lifespan.state, self._log
        own_logger = _OwnLogger("uvicorn.error")

        def protocol() -> asyncio.BaseProtocol:
            made = make(config=config, server_state=state, app_state=app_state, _loop=loop)
            made.logger = own_logger
            made.access_log = log is not None  # instead of the logger that all loops share, and its lock
            made.access_logger = log
            connection: asyncio.BaseProtocol = made
            return connection

        return protocol

    # While it serves

    async def _tick(self) -> None:
        """Once a second: the date that answers carry, and the clients that are too slow."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK)
            await self._set_date()
            if self._head_timeout is not None:
                for connection in self._late_heads(loop.time(), self._head_timeout):
                    connection.transport.close()

    async def _set_date(self) -> None:
        """Set the headers that all answers carry: objects of this loop, since uvicorn's are constants of its code."""
        await self._server.on_tick(0)
        state = self._server.server_state
        state.default_headers = [(_own(name), _own(value)) for name, value in state.default_headers]

    def _connections(self) -> list[Any]:
        """uvicorn's protocols of the connections that are open, of whatever class."""
        return list(self._server.server_state.connections)

    def _late_heads(self, now: float, patience: float) -> list[Any]:
        """Connections whose client takes too long over the head of a request, or never begins one.

        Those that are idle between two requests are not among them: uvicorn closes these itself.
        """
        waiting = {
            connection: connection.cycle
            for connection in self._connections()
            if _is_idle(connection)
            and (connection.cycle is None or getattr(connection, "timeout_keep_alive_task", None) is None)
        }
        return self._waiting.late(now, waiting, patience)

    # The end

    def begin_drain(self) -> None:
        """Let connections go: each when its answer says so, or when no request came for a moment."""
        assert self._gate is not None
        self._gate.draining = True
        self._waiting = Waiting[Any]()  # from now on a request counts when its head is complete
        if self._ticker is not None:
            self._ticker.cancel()
        for connection in self._connections():
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_started and not _is_pipelined(connection):
                # The answer will say that it is the last. (uvicorn's own shutdown() does not have h11's say so.)
                cycle.default_headers = [*cycle.default_headers, LAST_ANSWER]
            # An answer that is on its way has not said so: the next one will.

    async def drain(self, connections: Callable[[], int]) -> None:
        """Wait for connections and requests to end, and close connections that have nothing to say."""
        loop = asyncio.get_running_loop()
        state = self._server.server_state
        told: set[Any] = set()
        while state.connections or state.tasks or connections():
            open_ones = self._connections()
            idle: dict[Any, object] = {one: one.cycle for one in open_ones if _is_idle(one)}
            for connection in self._late_in_drain(loop.time(), idle):
                connection.shutdown()
            for connection in open_ones:
                # A WebSocket's other end is told that the service restarts (1012), when it has shaken hands.
                if not _is_http(connection) and connection not in told and _has_shaken_hands(connection):
                    told.add(connection)
                    connection.shutdown()
            await asyncio.sleep(DRAIN_LOOK)

    def _late_in_drain(self, now: float, idle: dict[Any, object]) -> list[Any]:
        """Connections on which nothing comes, or too slowly: a head that has begun has the time that it always has."""
        silent = {one: cycle for one, cycle in idle.items() if not _is_asking(one)}
        asking = {one: cycle for one, cycle in idle.items() if one not in silent}
        late = self._waiting.late(now, silent, IDLE_GRACE)
        if self._head_timeout is not None:
            late += self._half_heads.late(now, asking, self._head_timeout)
        return late

    def cut(self) -> list[str]:
        """Cancel the requests that are still in flight."""
        assert self._gate is not None
        names = [describe(scope) for scope in self._gate.in_flight.values()]
        for task in list(self._server.server_state.tasks):
            task.cancel("the server's time to drain was over")
        return names

    async def stop(self) -> str | None:
        """Run the application's shutdown, and say what was wrong with it."""
        if self._ticker is not None:
            self._ticker.cancel()
        gate, lifespan = self._gate, self._server.lifespan
        assert gate is not None
        failed_before = gate.lifespan_error
        try:
            await lifespan.shutdown()
            await gate.lifespan_ended()
            error = gate.lifespan_error
        finally:
            await gate.cancel_lifespan()
            if self._log is not None:
                self._log.close()
        if error is not None and error is not failed_before:
            raise error
        return f"{_name(self._app)} did not shut down in good order" if lifespan.should_exit else None


def _server_of(config: "uvicorn.Config") -> "uvicorn.Server":
    import uvicorn  # noqa: PLC0415 - an extra

    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    return server


# On a free-threaded build an object that the threads of all loops use in each request makes them wait for the cache
# line of its reference count: some 50 ns each time. What uvicorn shares and is easily had once for each loop is these
# two: a sixth of all such accesses of a small request (benchmarks/http.py).


def _own(data: bytes) -> bytes:
    """A copy: ``bytes(data)`` would be the same object."""
    return bytes(bytearray(data))


class _OwnLogger(logging.Logger):
    """A logger of one loop, which leaves everything but its own being there to the one of the same name."""

    def __init__(self, name: str) -> None:
        self._shared = logging.getLogger(name)
        super().__init__(name, self._shared.getEffectiveLevel())

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name is logging's
        return self._shared.isEnabledFor(level)

    def handle(self, record: logging.LogRecord) -> None:
        self._shared.handle(record)


def _is_http(connection: Any) -> bool:
    """Whether this is one of uvicorn's protocols for HTTP, rather than for WebSockets."""
    return hasattr(connection, "cycle")


def _is_idle(connection: Any) -> bool:
    """Whether it has no request to answer, as far as its whole head has come."""
    return _is_http(connection) and (connection.cycle is None or connection.cycle.response_complete)


def _has_shaken_hands(connection: Any) -> bool:
    """Whether this WebSocket is open; not all of uvicorn's classes tell."""
    done: bool = getattr(connection, "handshake_complete", True)
    return done


def _is_pipelined(connection: Any) -> bool:
    """Whether a client has sent further requests without waiting for the answer to the one before."""
    return bool(getattr(connection, "pipeline", None)) or _is_asking(connection)  # httptools: parsed requests


def _is_asking(connection: Any) -> bool:
    """Whether a part of the next request's head has come."""
    begun: bool | None = getattr(connection, "head_begun", None)
    if begun is not None:  # httptools
        return begun
    conn = getattr(connection, "conn", None)  # h11: bytes that are not looked at yet
    return conn is not None and bool(conn.trailing_data[0])


def _more_waiting(send: Send) -> bool:
    """``_is_pipelined`` for a ``send`` of uvicorn's: it is a method of the connection's cycle."""
    on_response = getattr(getattr(send, "__self__", None), "on_response", None)
    return _is_pipelined(getattr(on_response, "__self__", None))


def _name(app: object) -> str:
    return getattr(app, "__qualname__", None) or repr(app)
