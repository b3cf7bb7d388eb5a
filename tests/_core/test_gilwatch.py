"""The GIL watch, in processes of their own: an import that switches the GIL on cannot be taken back."""

import os
import subprocess
import sys
import sysconfig
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path

import pytest

from polyloop._core import _prims
from polyloop._core._gilwatch import _NAMES_KEPT, GilWatch

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

needs_no_gil = pytest.mark.skipif(not FREE_THREADED, reason="this build has no GIL to switch on")


def extension_that_needs_the_gil(name: str, folder: Path) -> None:
    """CPython's test module under a name whose init function does not declare itself safe."""
    spec: ModuleSpec | None = PathFinder.find_spec("_testsinglephase")
    if spec is None or spec.origin is None:
        pytest.skip("this Python has no test modules")
    (folder / f"{name}{EXTENSION_SUFFIXES[0]}").symlink_to(spec.origin)


def run(folder: Path, program: str) -> list[str]:
    """Run a program with that folder on its path; return the lines of its output."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    source = str(Path(__file__).parents[2] / "src")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        env={**environment, "PYTHONPATH": os.pathsep.join((str(folder), source))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


WATCHING = """
import sys, warnings
from polyloop._core._errors import GilEnabledWarning
from polyloop._core._gilwatch import gil_watch
warnings.simplefilter("always", GilEnabledWarning)
warnings.showwarning = lambda message, category, *args: category is GilEnabledWarning and print(message)
gil_watch.install()
"""


@needs_no_gil
def test_the_module_that_switched_the_gil_on_is_named_once(tmp_path: Path) -> None:
    """At the next import, and never again."""
    extension_that_needs_the_gil("_testsinglephase_check_cache_first", tmp_path)
    lines = run(
        tmp_path,
        WATCHING
        + """
import _testsinglephase_check_cache_first
assert sys._is_gil_enabled()
import sched, colorsys
gil_watch.look()
print(gil_watch.culprit)
""",
    )
    assert len(lines) == 2
    assert "the import of module '_testsinglephase_check_cache_first' switched the GIL on" in lines[0]
    assert lines[1] == "_testsinglephase_check_cache_first"


@needs_no_gil
def test_a_module_that_imports_others_while_it_is_created_is_named_itself(tmp_path: Path) -> None:
    """The GIL is on during its creation, which proves nothing; what it imports there is innocent."""
    extension_that_needs_the_gil("_testsinglephase_circular", tmp_path)
    pytest.importorskip("test.test_import.data.circular_imports", reason="needs CPython's test package")
    lines = run(tmp_path, WATCHING + "import _testsinglephase_circular, sched\nprint(gil_watch.culprit)")
    assert lines[-1] == "_testsinglephase_circular"
    assert len(lines) == 2


@needs_no_gil
def test_the_import_at_which_it_warns_still_finds_its_module(tmp_path: Path) -> None:
    """The finder does not take itself out of the list that the import system walks through."""
    extension_that_needs_the_gil("_testsinglephase_check_cache_first", tmp_path)
    lines = run(
        tmp_path,
        WATCHING
        + """
import _testsinglephase_check_cache_first
sys.modules.pop("_stat", None)
import _stat  # found by the finder that stands right behind ours
print(_stat.__spec__.origin)
""",
    )
    assert lines[-1] == "built-in"


@needs_no_gil
def test_a_runtime_watches_while_it_runs(tmp_path: Path) -> None:
    """The watch begins with the first runtime and ends with the last."""
    lines = run(
        tmp_path,
        """
        import sys, polyloop
        from polyloop._core._gilwatch import gil_watch
        print(gil_watch in sys.meta_path)
        with polyloop.Runtime(loops=1), polyloop.Runtime(loops=1):
            print(gil_watch in sys.meta_path, gil_watch.watching)
        print(gil_watch.watching)
        """,
    )
    assert lines == ["False", "True True", "False"]


@needs_no_gil
def test_the_watch_ends_in_the_middle_of_an_import(tmp_path: Path) -> None:
    """The import system walks through the list of finders meanwhile, and must not skip the one behind ours."""
    lines = run(
        tmp_path,
        WATCHING
        + """
real = gil_watch.look
gil_watch.look = lambda: (gil_watch.remove(), real())[1]
sys.modules.pop("_stat", None)
import _stat  # found by the finder that stands right behind ours
print(_stat.__spec__.origin, gil_watch.watching)
""",
    )
    assert lines == ["built-in False"]


def test_failing_imports_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that tries an import at each request keeps the last names only."""
    monkeypatch.setattr(_prims, "gil_enabled", lambda: False)
    watch = GilWatch()
    watch.watching = True
    for number in range(10 * _NAMES_KEPT):
        assert watch.find_spec(f"module_{number}", None) is None
    assert len(watch._recent) == _NAMES_KEPT


def test_nothing_is_watched_with_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with the GIL, or one where it is on already, gets no finder."""
    monkeypatch.setattr(_prims, "gil_enabled", lambda: True)
    watch = GilWatch()
    watch.install()
    assert watch not in sys.meta_path
    watch.remove()
