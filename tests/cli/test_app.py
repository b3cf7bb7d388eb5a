"""The group: help, versions, and errors of any command on one line."""

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from polyloop.cli import main
from polyloop.cli._app import app
from polyloop.cli._loops import known_fault

if TYPE_CHECKING:
    from tests.cli.conftest import Polyloop


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["doctor", "--help"], ["bench", "--help"]])
def test_help_tells_the_exit_codes(args: list[str]) -> None:
    """Every command's help ends with them."""
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0
    assert "Exit codes: 0 ok; 1 the program raised" in " ".join(result.output.split())


def test_no_command_shows_the_help_and_is_a_usage_error() -> None:
    """As with other command lines."""
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert result.output.startswith("Usage: ")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nope"], "No such command 'nope'. hint: see 'polyloop --help'"),
        (["doctor", "--xyz"], "No such option '--xyz'. hint: see 'polyloop doctor --help'"),
        (["run"], "Missing argument 'MODULE:FUNCTION'. hint: see 'polyloop run --help'"),
        (["bench", "cpu", "--chart", "x.png"], "--chart x.png: neither .html nor .svg. hint: write x.svg"),
        (
            ["bench", "cpu", "--url", "u"],
            "--url has no meaning for 'cpu'. hint: use it with 'polyloop bench fetch'",
        ),
    ],
)
def test_a_wrong_command_line_is_told_on_one_line(
    args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 2, and one line on standard error."""
    if args[0] == "bench":
        pytest.importorskip("aiohttp")
        pytest.importorskip("pygal")
    assert main(args) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {line}\n")


def test_the_version_is_told(polyloop: "Polyloop") -> None:
    """``--version`` names polyloop and Python."""
    done = polyloop("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("polyloop ")
    assert done.stdout.endswith(f"on Python {sys.version.split()[0]}\n")


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_the_extra_one_line_says_how_to_install_it(module: str) -> None:
    """The package itself can be installed without the command line's libraries."""
    code = f"import sys; sys.modules[{module!r}] = None; from polyloop.cli import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    needs = f"error: the command line needs '{module}', which is not installed."
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{needs} hint: install the extra: pip install 'polyloop[cli]'\n"


def test_a_benchmark_without_its_extra_is_told_on_one_line() -> None:
    """Before any work."""
    code = "import sys; sys.modules['pygal'] = None; from polyloop.cli import main; sys.exit(main(['bench', 'cpu']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: bench needs '")
    assert done.stderr.endswith("which is not installed. hint: install the extra: pip install 'polyloop[bench]'\n")


@pytest.mark.parametrize(
    ("name", "version", "free_threaded", "faulty"),
    [
        ("uvloop", "0.22.1", True, True),
        ("uvloop", "0.22.1", False, False),
        ("uvloop", "0.23.0", True, False),
        ("uvloop", "1.0", True, False),
        ("rloop", "0.2.0", True, False),
    ],
)
def test_known_faults_depend_on_version_and_build(name: str, version: str, free_threaded: bool, faulty: bool) -> None:
    """uvloop before 0.23 loses wake-ups without the GIL."""
    assert (known_fault(name, version, free_threaded=free_threaded) is not None) is faulty
