"""Exit codes, and the one exception that commands raise for what a user can put right."""

import enum

import click


class ExitCode(enum.IntEnum):
    """What the process tells its caller. Documented in ``--help`` and in ``docs/cli.md``."""

    OK = 0
    FAILURE = 1
    """The user's program raised, a server could not start or stop in good order, a benchmark's check failed, or an
    extra is not installed."""
    USAGE = 2
    """The command line, the target or the loop library is wrong; nothing of the program ran."""
    NOT_PARALLEL = 3
    """``doctor``: this interpreter cannot run Python code in parallel."""
    INTERRUPTED = 130
    """Ctrl-C."""


EXIT_CODES_HELP = (
    "Exit codes: 0 ok; 1 the program raised, a server could not start or stop in good order, a check failed or an "
    "extra is missing; 2 wrong command line, target or loop library; 3 doctor found that this interpreter cannot run "
    "in parallel; 130 Ctrl-C. A SystemExit of the program passes through with its own code."
)


class CliError(click.ClickException):
    """A failure that is told on one line, with what to do about it.

    Args:
        message: What failed, with the value seen.
        hint: The next step.
        code: The exit code.
    """

    def __init__(self, message: str, *, hint: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


def code_of(exc: click.ClickException) -> int:
    """Return the exit code that ``exc`` asks for."""
    return exc.code if isinstance(exc, CliError) else exc.exit_code


def error_line(exc: click.ClickException) -> str:
    """Tell ``exc`` on a single line: ``error: what failed. hint: what to do``."""
    message = " ".join(exc.format_message().split()).rstrip(".")
    if isinstance(exc, CliError):
        hint = exc.hint
    else:
        context = exc.ctx if isinstance(exc, click.UsageError) else None
        hint = f"see '{context.command_path if context else 'polyloop'} --help'"
    return f"error: {message}. hint: {' '.join(hint.split())}"
