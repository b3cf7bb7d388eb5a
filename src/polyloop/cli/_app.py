"""The ``polyloop`` group. Every error of every command leaves through ``OneLineGroup.main``."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from polyloop.cli._errors import EXIT_CODES_HELP, ExitCode, code_of, error_line
from polyloop.cli._run import run
from polyloop.cli._serve import serve
from polyloop.cli.bench import bench
from polyloop.cli.doctor import doctor


class OneLineGroup(click.Group):
    """A click group that tells an error on one line and gives the commands' return values out as exit codes."""

    def main(  # type: ignore[override]  # click overloads it on standalone_mode; the result here is an exit code or none
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> int:
        """Run the group; see :meth:`click.Command.main`. Leaves by ``sys.exit`` where ``standalone_mode`` is set."""
        code = self._main(args, prog_name, extra)
        if standalone_mode:
            sys.exit(code)
        return code

    def _main(self, args: Sequence[str] | None, prog_name: str | None, extra: dict[str, Any]) -> int:
        try:
            result = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.Abort:  # click turns KeyboardInterrupt into it
            return ExitCode.INTERRUPTED
        except click.ClickException as exc:
            click.echo(error_line(exc), err=True)
            return code_of(exc)
        return result if isinstance(result, int) else ExitCode.OK


def _version() -> str:
    import importlib.metadata  # noqa: PLC0415 - 20 ms that only --version needs

    try:
        return importlib.metadata.version("polyloop")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _show_version(context: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"polyloop {_version()} on Python {sys.version.split()[0]}")
        context.exit()


@click.group(cls=OneLineGroup, epilog=EXIT_CODES_HELP, invoke_without_command=True)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show versions."
)
@click.pass_context
def app(context: click.Context) -> None:
    """asyncio on every core of a free-threaded Python."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(ExitCode.USAGE)


app.add_command(run)
app.add_command(serve)
app.add_command(doctor)
app.add_command(bench)


def run_app(argv: Sequence[str] | None) -> int:
    """Run the group on ``argv`` and return the exit code."""
    return app.main(argv, "polyloop", standalone_mode=False)
