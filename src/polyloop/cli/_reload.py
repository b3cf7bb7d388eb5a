"""``polyloop serve --reload``: uvicorn's reloader around a server in a process of its own, for development.

The parent binds the sockets once, so that clients wait while the server is exchanged rather than be refused, sees to
the file of a unix socket, and runs none of the application.
"""

import asyncio
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from polyloop.cli._errors import ExitCode, code_of, error_line
from polyloop.cli._program import split_target
from polyloop.cli._serving import (
    Settings,
    check_extra,
    configure_logging,
    given_sockets,
    make_tls,
    serve_settings,
    start_error,
)
from polyloop.serve._listen import Listener, bind_tcp, bind_unix
from polyloop.serve._systemd import inherited_sockets


@dataclass(frozen=True, slots=True)
class Child:
    """What the reloader starts in each new process; it is pickled for that."""

    settings: Settings

    def __call__(self, sockets: Sequence[socket.socket]) -> None:
        """Serve until the reloader says otherwise, and leave with the exit code."""
        try:
            code = serve_settings(self.settings, sockets)
        except click.ClickException as exc:  # a file that was saved too early: the next change starts it again
            click.echo(error_line(exc), err=True)
            code = code_of(exc)
        sys.exit(code)


def serve_reloading(settings: Settings, folders: Sequence[str]) -> int:
    """Serve, and start again whenever a Python file in one of the folders changes; until a signal.

    Args:
        folders: The working directory if empty.
    Raises:
        CliError: an option is wrong, or the address cannot be had.
    """
    check_extra()
    configure_logging(settings.log_level)
    split_target(settings.target, "target", "MODULE:APP", "app")
    make_tls(settings.tls)
    listeners = _listeners(settings)
    try:
        _run_reloader(settings, folders, [listener.sock for listener in listeners])
    finally:
        for listener in listeners:
            listener.close()
    return ExitCode.OK


def _run_reloader(settings: Settings, folders: Sequence[str], sockets: list[socket.socket]) -> None:
    import uvicorn  # noqa: PLC0415 - an extra
    from uvicorn.supervisors import ChangeReload  # noqa: PLC0415

    config = uvicorn.Config(settings.target, reload=True, reload_dirs=list(folders) or None, log_config=None)
    target: Any = Child(settings)
    ChangeReload(config, target=target, sockets=sockets).run()


def _listeners(settings: Settings) -> list[Listener]:
    try:
        sockets = given_sockets(settings) or inherited_sockets()
        if sockets:
            return [Listener(sock) for sock in sockets]
        options = settings.options
        if (path := options.get("uds")) is not None:
            return [bind_unix(path, 0o666)]
        host, port = options.get("host"), options.get("port")
        bound = asyncio.run(bind_tcp(host, port))  # once, whatever --reuse-port says: the child's loops share it
        return [Listener(sock) for sock in bound]
    except (OSError, ValueError) as exc:
        raise start_error(exc) from exc
