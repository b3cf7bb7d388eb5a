"""``AiohttpServer``: an aiohttp application on each loop."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from polyloop._core._errors import ServerStartError
from polyloop._core._worker import LoopFactory
from polyloop.serve._engine import Engine
from polyloop.serve._options import ServeOptions, checked
from polyloop.serve._report import ServeReport
from polyloop.serve._serve import run_server
from polyloop.serve._web import WebServer


class AiohttpServer(WebServer):
    """An aiohttp application on each loop of a runtime, on one port; ``serve_aiohttp`` without its runtime and signals.

    aiohttp ties an application to one loop, so each loop has its own, made by ``factory`` there. ``on_startup``,
    ``cleanup_ctx``, ``on_shutdown`` and ``on_cleanup`` run once on each.

    Args:
        factory: Called on each loop; returns a new ``aiohttp.web.Application``, or a coroutine that does.
        settings: Further settings of ``aiohttp.web.AppRunner``: ``keepalive_timeout``, ``max_line_size`` ...
        options: See ``ServeOptions``. The ``head_timeout`` of aiohttp is that of a connection's first request.
    Raises:
        TypeError, ValueError: an option makes no sense.
    Thread safety: everything but the methods that are awaited may be called from any thread.

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        *,
        settings: Mapping[str, Any] | None = None,
        **options: Unpack[ServeOptions],
    ) -> None:
        super().__init__(checked(options))
        try:
            from aiohttp import web  # noqa: PLC0415 - an extra
        except ImportError as exc:
            raise ServerStartError("serving an aiohttp application needs: pip install 'polyloop[aiohttp]'") from exc
        if isinstance(factory, web.Application):
            raise TypeError(
                f"{factory!r} is one application, which aiohttp ties to one loop; give a function that makes one"
            )
        if not callable(factory):
            raise TypeError(f"the factory is called on each loop; {factory!r} is not callable")
        self._factory = factory
        self._settings = dict(settings or {})

    def _make_engine(self) -> Engine:
        from polyloop.serve._aiohttp import AiohttpEngine  # noqa: PLC0415 - an extra

        options = self._options
        return AiohttpEngine(
            self._factory,
            settings=self._settings,
            health_path=options.health,
            health=self.health,
            access_log=self._access_log,
            head_timeout=options.head_timeout,
        )


def serve_aiohttp(
    factory: Callable[[], Any],
    *,
    loops: int | None = None,
    loop_factory: LoopFactory | None = None,
    settings: Mapping[str, Any] | None = None,
    on_ready: Callable[[WebServer], object] | None = None,
    **options: Unpack[ServeOptions],
) -> ServeReport:
    """Serve an aiohttp application on every core, in one process and on one port, until a signal stops it.

    Args:
        factory, settings, options: See ``AiohttpServer``.
        loops, loop_factory, on_ready: See ``serve``.
    Returns, Raises, Thread safety: See ``serve``.

    .. versionadded:: 0.4
    """

    def make(extra: ServeOptions) -> WebServer:
        merged = options.copy()
        merged.update(extra)
        return AiohttpServer(factory, settings=settings, **merged)

    return run_server(make, options, loops=loops, loop_factory=loop_factory, on_ready=on_ready)
