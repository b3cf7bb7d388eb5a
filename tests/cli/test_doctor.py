"""``polyloop doctor``: the report, the verdict and the exit code."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from polyloop.cli._environment import Cores, Interpreter
from polyloop.cli._loops import LoopLibrary
from polyloop.cli._scaling import Scaling, measure_scaling
from polyloop.cli.doctor._imports import ImportProbe, probe_import
from polyloop.cli.doctor._report import judge, notes_on

if TYPE_CHECKING:
    from tests.cli.conftest import Polyloop

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
GOOD = Interpreter("3.14.1", "CPython", "free-threaded", gil_enabled=False, gil_setting=None)
CORES = Cores(4, 4, None, 4)
FLIPPER = ImportProbe("bad", "switches the GIL on", "bad._c", None)

EXTENSION = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "wants_gil", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_wants_gil(void) { return PyModule_Create(&module); }
"""


def test_the_json_report_has_everything(polyloop: "Polyloop") -> None:
    """Standard output is JSON and nothing else; the exit code follows the verdict."""
    done = polyloop("doctor", "--json", "--import", "json")
    report = json.loads(done.stdout)
    assert set(report) == {
        "schema", "interpreter", "cores", "loops", "imports", "scaling", "notes", "verdict",
    }  # fmt: skip
    assert report["schema"] == "polyloop-doctor/1"
    assert report["interpreter"]["build"] == ("free-threaded" if FREE_THREADED else "GIL")
    assert [library["name"] for library in report["loops"]] == ["uvloop", "rloop"]
    assert [found["module"] for found in report["imports"]] == ["json"]
    assert done.returncode == (0 if report["verdict"]["parallel"] else 3)


def test_the_report_for_people_ends_with_the_verdict(polyloop: "Polyloop") -> None:
    """Without the probe it is quick; a GIL build is told so."""
    done = polyloop("doctor", "--no-probe", "--import", "json")
    last = done.stdout.splitlines()[-1]
    if done.returncode == 0:
        assert last.startswith("verdict: can run Python code in parallel on ")
    else:
        assert last.startswith("verdict: cannot run Python code in parallel: ")


@pytest.mark.skipif(not FREE_THREADED, reason="needs a build that can run without the GIL")
def test_a_gil_that_was_switched_on_by_option_is_named(polyloop: "Polyloop") -> None:
    """``-X gil=1`` is the reason, and the exit code is 3."""
    done = polyloop("doctor", "--no-probe", "--json", options=("-X", "gil=1"))
    report = json.loads(done.stdout)
    assert done.returncode == 3
    assert report["interpreter"]["gil_enabled"] is True
    assert report["verdict"]["reasons"][0] == "the GIL is on because of -X gil=1: remove that setting"


@pytest.mark.skipif(sys._is_gil_enabled(), reason="the GIL is on already")
def test_an_import_that_switches_the_gil_on_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real extension module that does not declare itself safe, compiled here."""
    compiler = shutil.which("cc")
    include = sysconfig.get_path("include")
    if compiler is None or not Path(include, "Python.h").exists():
        pytest.skip("needs a C compiler and Python's headers")
    (tmp_path / "wants_gil.c").write_text(EXTENSION, encoding="utf-8")
    library = tmp_path / f"wants_gil{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [compiler, "-shared", "-fPIC", f"-I{include}", str(tmp_path / "wants_gil.c"), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "uses_it.py").write_text("import wants_gil\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe_import("uses_it")
    assert (found.outcome, found.culprit, found.enables_gil) == ("switches the GIL on", "wants_gil", True)


def test_a_module_that_cannot_be_imported_is_told() -> None:
    """With its error, and without a verdict on the GIL."""
    found = probe_import("nothing_of_that_name")
    expected = "ModuleNotFoundError: No module named 'nothing_of_that_name'"
    assert (found.outcome, found.error) == ("cannot be imported", expected)


def verdict(
    interpreter: Interpreter = GOOD,
    cores: Cores = CORES,
    imports: tuple[ImportProbe, ...] = (),
    scaling: Scaling | None = None,
    *,
    loops: tuple[LoopLibrary, ...] = (),
    asked: bool = False,
) -> tuple[bool, str]:
    """Judge, and return the first thing said about it."""
    judged = judge(interpreter, cores, loops, imports, scaling, asked=asked)
    return judged.parallel, (*judged.reasons, *judged.warnings, "")[0]


def test_a_free_threaded_build_with_cores_is_fine() -> None:
    """Nothing to say."""
    assert verdict() == (True, "")


def test_a_gil_build_is_not() -> None:
    """With what to install."""
    gil = Interpreter("3.13.1", "CPython", "GIL", gil_enabled=True, gil_setting=None)
    expected = "this is a GIL build: install a free-threaded one, for example with 'uv python install 3.14t'"
    assert verdict(gil) == (False, expected)


def test_a_gil_that_is_on_without_a_setting_was_imported() -> None:
    """Something in site-packages did it before the program began."""
    on = Interpreter("3.14.1", "CPython", "free-threaded", gil_enabled=True, gil_setting=None)
    parallel, said = verdict(on)
    assert not parallel
    assert said.startswith("the GIL is on: something that was imported at start-up switched it on")


def test_one_core_is_not_enough() -> None:
    """Whatever the interpreter can do."""
    expected = "only one core may be used: raise the CPU affinity or the CPU limit of the container"
    assert verdict(cores=Cores(4, 4, 0.5, 1)) == (False, expected)


def test_a_module_that_switches_the_gil_on_decides_only_if_it_was_asked_for() -> None:
    """A well-known module that the program may never import earns a warning."""
    said = (
        "importing bad switches the GIL on (because of bad._c): upgrade it, do without it, or set PYTHON_GIL=0 "
        "at your own risk"
    )
    assert verdict(imports=(FLIPPER,), asked=True) == (False, said)
    assert verdict(imports=(FLIPPER,), asked=False) == (True, said)


def test_a_faulty_loop_library_is_a_warning() -> None:
    """It is refused only when it is chosen."""
    parallel, said = verdict(loops=(LoopLibrary("uvloop", "0.22.1", "it loses wake-ups"),))
    assert (parallel, said) == (True, "it loses wake-ups; 'polyloop run --loop uvloop' refuses it")


def test_a_busy_machine_is_not_the_interpreters_fault() -> None:
    """Two processes are the measure for two threads."""
    parallel, said = verdict(scaling=Scaling(threads=1.1, processes=1.2, rounds=3))
    assert parallel
    assert said.startswith("the machine is busy: two processes ran only 1.20x as fast as one")


def test_threads_that_lag_behind_processes_are_told() -> None:
    """Something keeps them from running side by side."""
    parallel, said = verdict(scaling=Scaling(threads=1.2, processes=2.0, rounds=3))
    assert (parallel, said) == (True, "two threads ran only 1.20x as fast as one, two processes 2.00x")


def test_the_probe_measures_something() -> None:
    """Ratios of real runs; their size depends on the machine."""
    scaling = measure_scaling(rounds=1)
    assert scaling.threads > 0
    assert scaling.processes > 0


def test_only_3_13t_has_notes() -> None:
    """Known limits belong to a version."""
    assert len(notes_on((3, 13), GOOD)) == 2
    assert notes_on((3, 14), GOOD) == ()
    assert sys.version_info >= (3, 13)
