"""Every example runs as a program of its own, checks its result and says so."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
POLYLOOP_IMPORT = "\nimport polyloop as rt\n"
ASYNCIO_IMPORT = "\nimport asyncio as rt\n"


def run(*command: str) -> str:
    """Run Python on ``command`` and return what it printed; errors and warnings fail."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


#: Those that need a server to work with: see tests/pools/test_examples_with_servers.py.
WITH_DATABASE = {"shop_database.py"}


@pytest.mark.parametrize(
    "example",
    sorted(file for file in EXAMPLES.glob("*.py") if file.name not in WITH_DATABASE),
    ids=lambda file: file.name,
)
def test_an_example_runs(example: Path) -> None:
    """It ends by itself, with a line that says what it checked."""
    assert run(str(example)).strip()


def test_the_cpu_example_is_an_asyncio_program_but_for_its_import() -> None:
    """The other import stands in a comment above; with it the program runs under asyncio."""
    text = (EXAMPLES / "cpu_tasks.py").read_text(encoding="utf-8")
    assert f"# {ASYNCIO_IMPORT.strip()}" in text
    assert text.count(POLYLOOP_IMPORT) == 1
    assert run("-c", text.replace(POLYLOOP_IMPORT, ASYNCIO_IMPORT)).startswith(
        "10 sums of 1,000,000 squares, all right"
    )
