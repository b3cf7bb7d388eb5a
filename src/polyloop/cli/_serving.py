"""What ``polyloop serve`` does with its options: the application, TLS, the sockets, and the server."""

import errno
import importlib
import inspect
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

import polyloop
from polyloop.cli._errors import CliError, ExitCode
from polyloop.cli._loops import loop_factory
from polyloop.cli._program import load_object
from polyloop.cli._run import show_traceback
from polyloop.serve import ServeOptions, WebServer
from polyloop.serve._successor import is_successor
from polyloop.serve._systemd import inherited_sockets, take_listener


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The files of TLS."""

    certfile: str | None = None
    keyfile: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_certs: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The command line, in values that another process can be given.

    Attributes:
        options: Those of ``polyloop.serve`` that are plain values.
        uvicorn: Those of ``uvicorn.Config``.
    """

    target: str
    factory: bool
    loops: int | None
    loop_library: str
    fd: int | None
    tls: Tls
    on_start: str | None
    on_stop: str | None
    log_level: str
    options: ServeOptions = field(default_factory=ServeOptions)
    uvicorn: Mapping[str, Any] = field(default_factory=dict[str, Any])


def check_extra() -> None:
    """Tell what to install, where something is missing.

    Raises:
        CliError: uvicorn is not installed.
    """
    try:
        importlib.import_module("uvicorn")
    except ModuleNotFoundError as exc:
        message = f"serving needs {exc.name!r}, which is not installed"
        raise CliError(message, hint="pip install 'polyloop[serve]'", code=ExitCode.FAILURE) from exc


def serve_settings(settings: Settings, sockets: Sequence[socket.socket] = ()) -> int:
    """Serve until a signal says otherwise; return the exit code.

    Args:
        sockets: To listen on, instead of those that the settings name. They belong to another process too, which sees
            to the file of a unix socket.
    Raises:
        CliError: an option is wrong, or the server could not start.
    """
    configure_logging(settings.log_level)
    factory = loop_factory(settings.loop_library)
    options = settings.options.copy()
    options["ssl"] = make_tls(settings.tls)
    try:
        app = load_app(settings.target, factory=settings.factory)
        first_of_all = _FirstOfAll(load_hook(settings.on_start, "--on-start"))
        options["on_start"] = first_of_all
        options["on_stop"] = load_hook(settings.on_stop, "--on-stop")
    except (CliError, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:  # the application's own error, whatever it is
        show_traceback(exc)
        return ExitCode.FAILURE
    if sockets:
        options["sockets"] = sockets
        options["uds"] = None
        options["reuse_port"] = False
    elif taken := given_sockets(settings):
        options["sockets"] = taken
    try:
        report = polyloop.serve(
            app,
            factory=settings.factory,
            loops=settings.loops,
            loop_factory=factory,
            uvicorn=settings.uvicorn,
            on_ready=lambda server: announce(settings, server),
            **options,
        )
    except (OSError, polyloop.ServerStartError) as exc:
        raise start_error(exc) from exc
    except (TypeError, ValueError) as exc:
        if not first_of_all.begun:  # so it is an option or an address
            raise start_error(exc) from exc
        show_traceback(exc)
        return ExitCode.FAILURE
    if not report.clean:
        click.echo(f"error: the server did not stop in good order: {report}", err=True)
        return ExitCode.FAILURE
    return ExitCode.OK


class _FirstOfAll:
    """``--on-start``, if there is any: what is called before anything else of the application's is."""

    def __init__(self, hook: Callable[[], object] | None) -> None:
        self.begun = False
        self._hook = hook

    def __call__(self) -> object:
        self.begun = True
        return None if self._hook is None else self._hook()


def start_error(exc: Exception) -> CliError:
    """The one line for an error of the start; what is wrong and the next step are parted by a semicolon there."""
    code = ExitCode.USAGE if isinstance(exc, TypeError | ValueError) else ExitCode.FAILURE
    text = str(exc)
    if isinstance(exc, OSError) and exc.strerror:
        text = f"{exc.filename}: {exc.strerror.lower()}" if exc.filename else exc.strerror
    message, _, hint = text.partition("; ")
    usual = "see the log" if isinstance(exc, polyloop.ServerStartError) else "see 'polyloop serve --help'"
    return CliError(message, hint=hint or usual, code=code)


# The application


def load_app(target: str, *, factory: bool) -> Callable[..., Any]:
    """Import the application, or what makes it.

    Raises:
        CliError: there is none, or it cannot be one.
        BaseException: whatever its module raises while it is imported.
    """
    found = load_object(target, "target", "MODULE:APP", "app")
    if not callable(found):
        kind = type(found).__name__
        raise CliError(f"{target!r} is not an ASGI application but {kind}", hint="it must be callable")
    takes = _arguments(found)
    if factory and takes is not None and not _binds(takes):
        hint = "it is called without any; leave out --factory if it is the application"
        raise CliError(f"the factory {target!r} takes arguments: {takes}", hint=hint)
    if not factory and takes is not None and not takes.parameters:
        raise CliError(
            f"{target!r} takes no arguments, so it is no ASGI application", hint="add --factory if it makes one"
        )
    return found


def load_hook(target: str | None, option: str) -> Callable[[], object] | None:
    """Import the function of ``--on-start`` or ``--on-stop``.

    Raises:
        CliError: there is none, or it takes arguments.
        BaseException: whatever its module raises while it is imported.
    """
    if target is None:
        return None
    found = load_object(target, option, "MODULE:FUNCTION", "prepare")
    if not callable(found):
        raise CliError(f"{option} {target!r} is not a function but {type(found).__name__}", hint="define it with 'def'")
    takes = _arguments(found)
    if takes is not None and not _binds(takes):
        raise CliError(f"{option} {target!r} takes arguments: {takes}", hint="it is called without any")
    return found


def _arguments(found: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(found)
    except (TypeError, ValueError):  # made in C, and does not tell
        return None


def _binds(signature: inspect.Signature) -> bool:
    try:
        signature.bind()
    except TypeError:
        return False
    return True


# TLS


def make_tls(files: Tls) -> ssl.SSLContext | None:
    """Load the certificates; none without ``--ssl-certfile``.

    Raises:
        CliError: a file cannot be read, or is not what it should be.
    """
    if files.certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    for option, name in (("--ssl-certfile", files.certfile), ("--ssl-keyfile", files.keyfile)):
        _check_readable(option, name)
    try:
        context.load_cert_chain(files.certfile, files.keyfile, lambda: _password(files))
    except (ssl.SSLError, OSError, ValueError) as exc:
        where = f"--ssl-certfile {files.certfile}" + (f" --ssl-keyfile {files.keyfile}" if files.keyfile else "")
        if getattr(exc, "reason", None) == "KEY_VALUES_MISMATCH":
            raise CliError(f"{where}: the key is not that of the certificate", hint="give those that belong") from exc
        password = "" if files.password is None else ", or the password is wrong"
        raise CliError(f"{where}: no certificate and private key in PEM{password}", hint="look into them") from exc
    _check_readable("--ssl-ca-certs", files.ca_certs)
    if files.ca_certs is not None:
        try:
            context.load_verify_locations(files.ca_certs)
        except (ssl.SSLError, OSError) as exc:
            raise CliError(f"--ssl-ca-certs {files.ca_certs}: no certificates in PEM", hint="look into it") from exc
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _password(files: Tls) -> str:
    if files.password is None:
        raise CliError(
            f"the private key in {files.keyfile or files.certfile} is encrypted",
            hint="give --ssl-keyfile-password, or set POLYLOOP_SSL_KEYFILE_PASSWORD",
        )
    return files.password


def _check_readable(option: str, name: str | None) -> None:
    if name is None:
        return
    try:
        with open(name, "rb"):
            pass
    except OSError as exc:
        reason = os.strerror(exc.errno or errno.EIO).lower()
        hint = "give a PEM file that this user may read"
        raise CliError(f"cannot read {option} {name!r}: {reason}", hint=hint) from exc


# Where it listens


def given_sockets(settings: Settings) -> list[socket.socket]:
    """The socket of ``--fd``; none in a process that gets its sockets from the one before it.

    Raises:
        CliError: the descriptor is no listening socket.
    """
    if settings.fd is None or is_successor():
        return []
    try:
        sockets = inherited_sockets()  # systemd's, which may be meant: nobody else is to take it once more
        for sock in [sock for sock in sockets if sock.fileno() != settings.fd]:
            sockets.remove(sock)
            sock.close()
        return sockets or [take_listener(settings.fd, f"--fd {settings.fd}")]
    except ValueError as exc:
        raise start_error(exc) from exc


def announce(settings: Settings, server: WebServer) -> None:
    """Say where it listens, on how many loops, and whether they run in parallel."""
    scheme = "http" if settings.tls.certfile is None else "https"
    where = ", ".join(_url(sock, scheme) for sock in server.sockets)
    loops = len(server.loads)
    gil = sys._is_gil_enabled()
    click.echo(
        f"polyloop: serving {settings.target} on {where}: {loops} {'loop' if loops == 1 else 'loops'}, "
        f"{'with' if gil else 'without'} the GIL, process {os.getpid()}",
        err=True,
    )
    if gil and loops > 1:
        hint = "run a free-threaded Python, or --loops 1; 'polyloop doctor' tells more"
        click.echo(f"warning: the GIL is on, so the loops take turns on one core. hint: {hint}", err=True)


def _url(sock: socket.socket, scheme: str) -> str:
    name: Any = sock.getsockname()
    if sock.family == socket.AF_INET6:
        return f"{scheme}://[{name[0]}]:{name[1]}"
    if sock.family == socket.AF_INET:
        return f"{scheme}://{name[0]}:{name[1]}"
    return f"unix:{os.fsdecode(name)}"


def configure_logging(level: str) -> None:
    """Show what polyloop and uvicorn have to say, and leave the application's logging to the application."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("polyloop", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
