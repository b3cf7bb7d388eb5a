"""``polyloop serve``: its options, and what they must not be together."""

import os
from collections.abc import Callable
from typing import Any, Literal

import click
from click.core import ParameterSource

from polyloop.cli._errors import EXIT_CODES_HELP, CliError
from polyloop.cli._loops import LOOP_NAMES, installed_version
from polyloop.cli._reload import serve_reloading
from polyloop.cli._serving import Settings, Tls, check_extra, serve_settings
from polyloop.serve import ServeOptions

#: Options that say where to listen: one of these groups.
_PLACES = (("host", "port"), ("uds",), ("fd",))

#: Seconds that requests get when a file has changed: nobody wants to wait then.
_RELOAD_TIMEOUT = 2.0

#: Options that are handed to uvicorn's Config under the same name, if they are given.
_OF_UVICORN = (
    "proxy_headers",
    "forwarded_allow_ips",
    "root_path",
    "timeout_keep_alive",
    "limit_concurrency",
    "http",
    "ws",
    "lifespan",
)

LEVELS = ("critical", "error", "warning", "info", "debug")

_COUNT = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0)
_FILE = click.Path()


def _options[F: Callable[..., object]](function: F) -> F:
    for option in reversed(_ALL):
        function = option(function)
    return function


_ALL: tuple[Callable[[Any], Any], ...] = (
    click.option("--factory", is_flag=True, help="APP is a function that makes the application; called on each loop."),
    click.option("--host", multiple=True, metavar="ADDRESS", help="Listen there; repeatable. [default: 127.0.0.1]"),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."),
    click.option("--uds", type=_FILE, metavar="PATH", help="Listen on a unix socket instead."),
    click.option("--fd", type=click.IntRange(min=0), metavar="N", help="Listen on this inherited socket instead."),
    click.option("--backlog", type=_COUNT, default=2048, show_default=True, help="Connections that may wait."),
    click.option("--reuse-port", is_flag=True, help="Each loop listens by itself; the kernel deals out connections."),
    click.option("--loops", type=_COUNT, metavar="N", help="Loops, one per thread. [default: usable cores]"),
    click.option(
        "--loop", "library", type=click.Choice(LOOP_NAMES), default="asyncio", show_default=True, help="Of this."
    ),
    click.option("--max-connections", type=_COUNT, metavar="N", help="At once; more wait in the kernel."),
    click.option("--max-connections-per-loop", type=_COUNT, metavar="N", help="The same for each loop."),
    click.option("--limit-concurrency", type=_COUNT, metavar="N", help="Answer 503 beyond N requests on a loop."),
    click.option("--http", type=click.Choice(("auto", "h11", "httptools")), help="Parser. [default: auto]"),
    click.option(
        "--ws",
        type=click.Choice(("auto", "none", "websockets", "websockets-sansio", "wsproto")),
        help="WebSockets. [default: auto]",
    ),
    click.option("--lifespan", type=click.Choice(("auto", "on", "off")), help="ASGI's lifespan. [default: auto]"),
    click.option("--on-start", metavar="MODULE:FUNCTION", help="Call it once, before the first application starts."),
    click.option("--on-stop", metavar="MODULE:FUNCTION", help="Call it once, when the last application has ended."),
    click.option("--ssl-certfile", type=_FILE, help="Speak TLS, with this certificate (PEM)."),
    click.option("--ssl-keyfile", type=_FILE, help="Its private key, unless that is in the same file."),
    click.option(
        "--ssl-keyfile-password", envvar="POLYLOOP_SSL_KEYFILE_PASSWORD", show_envvar=True, help="The key's password."
    ),
    click.option("--ssl-ca-certs", type=_FILE, help="Demand a certificate of clients, signed by one of these."),
    click.option("--access-log", type=_FILE, metavar="FILE", help="A line per request. [default: -, standard output]"),
    click.option("--no-access-log", is_flag=True, help="None."),
    click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True),
    click.option("--proxy-headers/--no-proxy-headers", default=None, help="Believe X-Forwarded-* of proxies."),
    click.option("--forwarded-allow-ips", metavar="IPS", help="Of these: addresses, networks, or '*'."),
    click.option("--root-path", metavar="PATH", help="Where a proxy has mounted the application."),
    click.option("--health", metavar="PATH", help="Answer PATH, PATH/ready and PATH/live by the server's health."),
    click.option("--timeout-keep-alive", type=_COUNT, metavar="SECONDS", help="Close idle connections. [default: 5]"),
    click.option("--head-timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for a request's head."),
    click.option("--graceful-timeout", type=_SECONDS, help="Seconds that requests get at the end. [default: 30]"),
    click.option("--reload", is_flag=True, help="Start again when a Python file changes; for development."),
    click.option("--reload-dir", multiple=True, type=_FILE, help="Look there, not in the working directory."),
)


@click.command(epilog=EXIT_CODES_HELP)
@_options
@click.argument("target", metavar="MODULE:APP")
@click.pass_context
def serve(context: click.Context, /, **given: Any) -> int:
    """Serve the ASGI application MODULE:APP on one event loop per core, in one process and on one port.

    SIGTERM and Ctrl-C stop it when all requests are answered, SIGUSR2 replaces it by a new process without losing a
    connection, SIGHUP opens the access log anew. Sockets and notifications of systemd are used where it is there.
    """
    check_extra()
    _check_places(context)
    _check_needs(given)
    settings = Settings(
        target=given["target"],
        factory=given["factory"],
        loops=given["loops"],
        loop_library=given["library"],
        fd=given["fd"],
        tls=Tls(
            certfile=given["ssl_certfile"],
            keyfile=given["ssl_keyfile"],
            password=given["ssl_keyfile_password"],
            ca_certs=given["ssl_ca_certs"],
        ),
        on_start=given["on_start"],
        on_stop=given["on_stop"],
        log_level=given["log_level"],
        options=_serve_options(given),
        uvicorn={name: given[name] for name in _OF_UVICORN if given[name] is not None},
    )
    if given["reload"]:
        return serve_reloading(settings, given["reload_dir"])
    return serve_settings(settings)


def _serve_options(given: dict[str, Any]) -> ServeOptions:
    hosts: tuple[str, ...] = given["host"] or ("127.0.0.1",)
    options = ServeOptions(
        host=hosts[0] if len(hosts) == 1 else hosts,
        port=given["port"],
        uds=given["uds"],
        backlog=given["backlog"],
        reuse_port=given["reuse_port"],
        max_connections=given["max_connections"],
        max_connections_per_loop=given["max_connections_per_loop"],
        health=given["health"],
        access_log=False if given["no_access_log"] else _log_target(given["access_log"]),
    )
    if given["head_timeout"] is not None:
        options["head_timeout"] = given["head_timeout"]
    if given["graceful_timeout"] is not None:
        options["graceful_timeout"] = given["graceful_timeout"]
    elif given["reload"]:
        options["graceful_timeout"] = _RELOAD_TIMEOUT
    return options


def _log_target(file: str | None) -> Literal[True] | str:
    return True if file in (None, "-") else str(file)


def _check_places(context: click.Context) -> None:
    """Refuse two answers to the question where to listen."""
    given = [
        "--" + next(name for name in group if context.get_parameter_source(name) != ParameterSource.DEFAULT)
        for group in _PLACES
        if any(context.get_parameter_source(name) != ParameterSource.DEFAULT for name in group)
    ]
    if len(given) > 1:
        raise CliError(f"{' and '.join(given)} both say where to listen", hint="give one of them")


def _check_needs(given: dict[str, Any]) -> None:
    """Refuse options that do nothing without another one, and what is not installed or not there."""
    for name in ("ssl_keyfile", "ssl_ca_certs"):
        if given[name] is not None and given["ssl_certfile"] is None:
            raise CliError(f"--{name.replace('_', '-')} without --ssl-certfile", hint="give the certificate too")
    if given["access_log"] is not None and given["no_access_log"]:
        raise CliError("--access-log and --no-access-log contradict each other", hint="give one of them")
    if given["reload_dir"] and not given["reload"]:
        raise CliError("--reload-dir without --reload", hint="add --reload")
    for folder in given["reload_dir"]:
        if not os.path.isdir(folder):
            raise CliError(f"--reload-dir {folder!r} is no folder", hint="give a folder with Python files")
    if given["reuse_port"] and (given["uds"] is not None or given["fd"] is not None):
        raise CliError("--reuse-port needs --host and --port", hint="leave it out")
    if given["reuse_port"] and given["max_connections"] is not None:
        hint = "give --max-connections-per-loop"
        raise CliError("--max-connections cannot be counted with --reuse-port, where each loop accepts", hint=hint)
    if given["health"] is not None and not given["health"].startswith("/"):
        raise CliError(f"--health {given['health']!r} is no path", hint=f"write /{given['health']}")
    for option, package in (("http", "httptools"), ("ws", "websockets"), ("ws", "wsproto")):
        if (given[option] or "").partition("-")[0] == package and installed_version(package) is None:
            raise CliError(
                f"--{option} {given[option]}: {package} is not installed", hint=f"pip install {package}, or use auto"
            )
