"""``polyloop run``: start a coroutine function on the pool, as ``python -m`` starts a module."""

import os
import sys
from types import TracebackType

import click

import polyloop
from polyloop.cli._errors import EXIT_CODES_HELP, CliError, ExitCode
from polyloop.cli._loops import LOOP_NAMES, loop_factory
from polyloop.cli._program import load_program, start_program


@click.command(context_settings={"allow_interspersed_args": False}, epilog=EXIT_CODES_HELP)
@click.option("--loops", type=click.IntRange(min=1), metavar="N", help="Loops, one per thread. [default: usable cores]")
@click.option("--loop", "library", type=click.Choice(LOOP_NAMES), default="asyncio", show_default=True, help="Library.")
@click.option("--debug", is_flag=True, help="asyncio's debug mode on every loop.")
@click.argument("target", metavar="MODULE:FUNCTION")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(target: str, args: tuple[str, ...], loops: int | None, library: str, debug: bool) -> int:
    """Run the coroutine function MODULE:FUNCTION on one event loop per core.

    The working directory is on sys.path and ARGS are in sys.argv, as under 'python -m'. A function that takes
    positional parameters gets ARGS as strings too; one that takes none is called without any. What it returns
    is dropped: use sys.exit(code) for an exit code. Options of polyloop stand before the target.
    """
    factory = loop_factory(library)
    try:
        coro = start_program(load_program(target, args), args)
        polyloop.run(coro, loops=loops, loop_factory=factory, debug=True if debug else None)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except (CliError, SystemExit):
        raise
    except BaseException as exc:  # the program's own error, whatever it is
        show_traceback(exc)
        return ExitCode.FAILURE
    return ExitCode.OK


def show_traceback(exc: BaseException) -> None:
    """Show the error as the interpreter would, beginning at the program rather than in this package."""
    frames = _without_own_frames(exc.__traceback__)
    # A file that cannot be parsed has no frame of its own: the error itself names the line.
    shown = exc.with_traceback(frames if frames or isinstance(exc, SyntaxError) else exc.__traceback__)
    sys.excepthook(type(shown), shown, shown.__traceback__)


def _without_own_frames(traceback: TracebackType | None) -> TracebackType | None:
    here = os.path.dirname(__file__) + os.sep
    first = traceback
    while first is not None and _is_launcher(first.tb_frame.f_code.co_filename, here):
        first = first.tb_next
    return first


def _is_launcher(filename: str, here: str) -> bool:
    return filename.startswith((here, "<frozen importlib")) or filename.endswith(f"importlib{os.sep}__init__.py")
