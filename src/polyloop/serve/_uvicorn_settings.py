"""Which settings of uvicorn a user may make."""

import contextlib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from polyloop._core._errors import ServerStartError

#: What uvicorn.Config takes and is not for the users of this server: it has parameters for it, or it makes no sense.
_OURS = frozenset(
    {
        "app",
        "host",
        "port",
        "uds",
        "fd",
        "loop",
        "workers",
        "reload",
        "factory",
        "log_config",
        "log_level",
        "access_log",
    }
    | {"backlog", "use_colors", "env_file", "timeout_graceful_shutdown", "limit_max_requests", "callback_notify"}
    | {"timeout_notify", "limit_max_requests_jitter", "timeout_worker_healthcheck", "http2"}
)

_HTTPTOOLS = "polyloop.serve._httptools"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings of uvicorn that are not its to decide here.

    Raises:
        ServerStartError: uvicorn is not installed.
        TypeError: uvicorn has no such setting.
        ValueError: the setting is this server's own.
    """
    try:
        import uvicorn  # noqa: PLC0415 - an extra
    except ImportError as exc:
        raise ServerStartError("serving an ASGI application needs uvicorn: pip install 'polyloop[serve]'") from exc
    known = set(inspect.signature(uvicorn.Config).parameters)
    for name, value in settings.items():
        if name in _OURS or name.startswith(("ssl_", "reload_")):
            raise ValueError(
                f"uvicorn={{{name!r}: {value!r}}}: polyloop decides that itself; see serve()'s own options"
            )
        if name not in known:
            raise TypeError(f"uvicorn={{{name!r}: {value!r}}}: uvicorn {uvicorn.__version__} has no such setting")
    if settings.get("http", "auto") in ("auto", "httptools"):
        with contextlib.suppress(ImportError):  # no httptools: h11 then, or uvicorn's own refusal
            importlib.import_module(_HTTPTOOLS)  # now: better a class is made before there are threads


def bounded(protocol: Any) -> Any:
    """The protocol class to use in place of one of uvicorn's: the same, but that every one bounds a request's head."""
    if (protocol.__module__, protocol.__qualname__) != ("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"):
        return protocol
    return importlib.import_module(_HTTPTOOLS).BoundedHttpTools
