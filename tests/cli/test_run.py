"""``polyloop run``: what a program is given, what comes out of it, and every way in which it cannot be started."""

import json
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from polyloop.cli._loops import installed_version

if TYPE_CHECKING:
    from tests.cli.conftest import Polyloop

type Program = Callable[[str], Path]

SHOW = """
import asyncio, json, sys, polyloop
async def main({parameters}):
    loops = len(polyloop.current_runtime().workers)
    print(json.dumps([loops, sys.argv, {shown}]))
"""


def test_a_program_gets_the_loops_that_were_asked_for_and_its_arguments(polyloop: "Polyloop", program: Program) -> None:
    """A function without parameters finds its arguments in sys.argv; options after the target are its own."""
    file = program(SHOW.format(parameters="", shown="None"))
    done = polyloop("run", "--loops", "2", "app:main", "--loops", "3", "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [2, [str(file), "--loops", "3", "x"], None]


def test_a_function_with_parameters_gets_the_arguments_as_strings(polyloop: "Polyloop", program: Program) -> None:
    """Positional parameters are filled from the command line."""
    program(SHOW.format(parameters="first, *rest", shown="[first, *rest]"))
    done = polyloop("run", "app:main", "1", "two")
    assert json.loads(done.stdout)[2] == ["1", "two"]


def test_a_dotted_attribute_is_followed(polyloop: "Polyloop", program: Program) -> None:
    """``module:Class.method`` reaches a static coroutine method."""
    program("class App:\n    @staticmethod\n    async def main():\n        print('reached')\n")
    assert polyloop("run", "app:App.main").stdout == "reached\n"


def test_what_the_function_returns_is_dropped(polyloop: "Polyloop", program: Program) -> None:
    """A result is no exit code."""
    program("async def main():\n    return 5\n")
    assert polyloop("run", "app:main").returncode == 0


def test_an_exit_code_of_the_program_passes_through(polyloop: "Polyloop", program: Program) -> None:
    """SystemExit means under polyloop what it means without."""
    program("import sys\nasync def main():\n    sys.exit(7)\n")
    assert polyloop("run", "app:main").returncode == 7


def test_a_message_given_to_exit_is_printed(polyloop: "Polyloop", program: Program) -> None:
    """``sys.exit("text")`` prints the text and exits with 1."""
    program("import sys\nasync def main():\n    sys.exit('no luck')\n")
    done = polyloop("run", "app:main")
    assert (done.returncode, done.stderr) == (1, "no luck\n")


def test_an_error_of_the_program_shows_its_traceback(polyloop: "Polyloop", program: Program) -> None:
    """The program's own exception is told as Python tells it, without frames of the command line."""
    program("async def main():\n    raise EOFError('my own')\n")
    done = polyloop("run", "app:main")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("\nEOFError: my own\n")
    assert "polyloop/cli" not in done.stderr.replace("\\", "/")


def test_an_error_at_import_shows_its_traceback(polyloop: "Polyloop", program: Program) -> None:
    """A module that cannot import something of its own keeps its traceback, which begins at its own line."""
    file = program("import nothing_of_that_name\n")
    done = polyloop("run", "app:main")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1] == f'  File "{file}", line 1, in <module>'
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'nothing_of_that_name'\n")


def test_a_file_that_cannot_be_parsed_is_told_with_its_line_alone(polyloop: "Polyloop", program: Program) -> None:
    """The frames of the import system say nothing of the program."""
    file = program("def oops(:\n")
    done = polyloop("run", "app:main")
    assert done.returncode == 1
    assert done.stderr.startswith(f'  File "{file}", line 1\n    def oops(:\n')
    assert done.stderr.endswith("\nSyntaxError: invalid syntax\n")


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("app", "target 'app' is not MODULE:FUNCTION. hint: write app:main"),
        (":main", "target ':main' is not MODULE:FUNCTION. hint: write app:main"),
        ("missing:main", "no module named 'missing'. hint: start it where 'import missing' works"),
        ("app.sub:main", "no module named 'app.sub'. hint: start it where 'import app.sub' works"),
        ("app:nope", "module 'app' has no attribute 'nope'. hint: it has main"),
        (
            "app:plain",
            "'app:plain' is not a coroutine function but function. hint: define it with 'async def'",
        ),
        (
            "app:stream",
            "'app:stream' is not a coroutine function but an async generator. hint: define it with 'async def'",
        ),
        (".app:main", "relative module name '.app'. hint: write the full name, as in package.module"),
    ],
)
def test_a_target_that_cannot_be_run_is_told_on_one_line(
    polyloop: "Polyloop", program: Program, target: str, line: str
) -> None:
    """Code 2, one line, nothing else."""
    program("async def main(): ...\ndef plain(): ...\nasync def stream():\n    yield\n")
    done = polyloop("run", target)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


def test_a_wrong_number_of_arguments_is_told_on_one_line(polyloop: "Polyloop", program: Program) -> None:
    """The signature is shown, and nothing of the function runs."""
    program("async def main(name): print('ran')\n")
    done = polyloop("run", "app:main")
    hint = "hint: give them after the target"
    expected = f"error: cannot call main(name) with 0 arguments: missing a required argument: 'name'. {hint}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_no_loops_are_a_wrong_command_line(polyloop: "Polyloop") -> None:
    """click's own errors are told on one line too."""
    done = polyloop("run", "--loops", "0", "app:main")
    expected = "error: Invalid value for '--loops': 0 is not in the range x>=1. hint: see 'polyloop run --help'\n"
    assert (done.returncode, done.stderr) == (2, expected)


@pytest.mark.skipif(installed_version("rloop") is not None, reason="rloop is installed")
def test_a_loop_library_that_is_not_installed_is_told_on_one_line(polyloop: "Polyloop", program: Program) -> None:
    """Looked up before the program is imported."""
    program("print('imported')\n")
    done = polyloop("run", "--loop", "rloop", "app:main")
    expected = "error: --loop rloop: rloop is not installed. hint: pip install rloop, or use --loop asyncio\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="the fault shows only without the GIL")
def test_an_uvloop_that_loses_wake_ups_is_refused(polyloop: "Polyloop", program: Program, tmp_path: Path) -> None:
    """By its version, before it is imported. The working directory comes first, so this metadata is the one found."""
    program("print('imported')\n")
    metadata = tmp_path / "uvloop-0.22.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: uvloop\nVersion: 0.22.1\n", encoding="utf-8")
    done = polyloop("run", "--loop", "uvloop", "app:main")
    fault = "uvloop 0.22.1 loses cross-thread wake-ups on a free-threaded build"
    expected = f"error: --loop uvloop: {fault}. hint: pip install 'uvloop>=0.23', or use --loop asyncio\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_the_program_with_130(program: Program, tmp_path: Path) -> None:
    """The main task is cancelled and may clean up; no traceback."""
    program(
        "import asyncio\n"
        "async def main():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
    )
    command = [sys.executable, "-m", "polyloop.cli", "run", "--loops", "2", "app:main"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "cleaned\n", "")
