"""``ASGIServer``: an ASGI application on all loops."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from polyloop._core._errors import ServerStartError
from polyloop.serve._engine import Engine
from polyloop.serve._options import ServeOptions, checked
from polyloop.serve._uvicorn import UvicornEngine
from polyloop.serve._uvicorn_settings import check_settings
from polyloop.serve._web import WebServer


class ASGIServer(WebServer):
    """An ASGI application on all loops of a runtime, on one port; ``serve`` without its own runtime and signals.

    HTTP and WebSockets are spoken by uvicorn's protocols, with a set of uvicorn's objects on each loop. As the ASGI
    specification asks for, the lifespan runs once on each loop, and the requests of a loop see the state of its own::

        async with polyloop.ASGIServer(app, port=8000) as server:
            await server.wait_closed()          # server.shutdown() ends it, from any thread

    Requests run in parallel: what an application keeps in module globals or on itself is shared by all loops.

    Args:
        app: An ASGI application, or ``"module:name"`` of one.
        factory: ``app`` is called without arguments on each loop and returns that loop's application: so nothing of it
            is shared, and nothing hot is touched by two threads. Preferable.
        uvicorn: Further settings of ``uvicorn.Config``: ``proxy_headers``, ``root_path``, ``timeout_keep_alive``,
            ``limit_concurrency`` (of each loop), ``ws_max_size``, ``http``, ``ws``, ``lifespan`` ...
        options: See ``ServeOptions``.
    Raises:
        ServerStartError: uvicorn is not installed, or there is no such application, or it cannot be imported.
        TypeError, ValueError: an option makes no sense.
    Thread safety: everything but the methods that are awaited may be called from any thread.
    Source: ASGI specification, "Lifespan Protocol".

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        app: Callable[..., Any] | str,
        *,
        factory: bool = False,
        uvicorn: Mapping[str, Any] | None = None,
        **options: Unpack[ServeOptions],
    ) -> None:
        super().__init__(checked(options))
        self._settings = dict(uvicorn or {})
        check_settings(self._settings)
        self._factory = factory
        self._app = _load(app) if isinstance(app, str) else app
        if not callable(self._app):
            raise TypeError(
                f"an ASGI application is called with scope, receive and send; {self._app!r} cannot be called"
            )

    def _make_engine(self) -> Engine:
        options = self._options
        return UvicornEngine(
            self._app,
            factory=self._factory,
            settings=self._settings,
            health_path=options.health,
            health=self.health,
            access_log=self._access_log,
            head_timeout=options.head_timeout,
        )


def _load(path: str) -> Callable[..., Any]:
    from uvicorn.importer import ImportFromStringError, import_from_string  # noqa: PLC0415 - an extra

    try:
        app: Callable[..., Any] = import_from_string(path)
    except ImportFromStringError as exc:
        raise ServerStartError(f"there is no application {path!r}: {exc}") from exc
    except Exception as exc:
        raise ServerStartError(f"the application {path!r} cannot be imported: {exc!r}") from exc
    return app
