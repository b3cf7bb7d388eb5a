"""The command line of polyloop: ``polyloop run``, ``serve``, ``doctor`` and ``bench``.

Where to look: ``_app`` holds the group and turns every error into one line, ``_errors`` the exit codes, ``_program``
and ``_run`` the start of a user's program, ``_serve``, ``_serving`` and ``_reload`` that of a server, ``doctor`` and
``bench`` the two commands of that name. Code that measures returns dataclasses and prints nothing; code that prints
measures nothing.

click and rich are the extra ``[cli]``; this file is the only one here that can be imported without them.
"""

import sys
from collections.abc import Sequence

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``polyloop`` command.

    Args:
        argv: Arguments without the program's name. Defaults to those of the process.
    Returns:
        The exit code; ``docs/cli.md`` lists them.
    Raises:
        SystemExit: the program started by ``polyloop run`` raised it; its code passes through.
    """
    try:
        from polyloop.cli._app import run_app  # noqa: PLC0415 - must fail with one line where the extra is missing
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in {"click", "rich"}:
            raise
        hint = "install the extra: pip install 'polyloop[cli]'"
        print(f"error: the command line needs {missing!r}, which is not installed. hint: {hint}", file=sys.stderr)
        return 1
    return run_app(argv)
