"""Gather what ``polyloop doctor`` tells, and judge it. Prints nothing."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polyloop.cli._environment import Cores, Interpreter, describe_cores, describe_interpreter
from polyloop.cli._loops import LoopLibrary, survey
from polyloop.cli._scaling import Scaling, measure_scaling
from polyloop.cli.doctor._imports import WELL_KNOWN, ImportProbe, installed, probe_imports

SCHEMA = "polyloop-doctor/1"
_EXPECTED = 0.8  # of what two processes got; below that, threads get in each other's way
_BUSY = 1.6  # two processes that get less than this are short of cores, not of parallelism


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether Python code can run in parallel here, and why not."""

    parallel: bool
    summary: str
    reasons: tuple[str, ...]
    """Why it cannot, each with what to do."""
    warnings: tuple[str, ...]
    """What deserves a look although it can."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that ``polyloop doctor`` found."""

    interpreter: Interpreter
    cores: Cores
    loops: tuple[LoopLibrary, ...]
    imports: tuple[ImportProbe, ...]
    scaling: Scaling | None
    """None where there is one core only, or the probe was turned off."""
    notes: tuple[str, ...]
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data; ``docs/cli.md`` describes it."""
        return {"schema": SCHEMA, **asdict(self)}


def examine(asked: Sequence[str], *, probe: bool = True, step: Callable[[], None] = lambda: None) -> Report:
    """Look at this interpreter and machine.

    Args:
        asked: Modules to import in a fresh interpreter; the well-known ones that are installed if empty.
        probe: Measure two threads against one.
        step: Called after each piece of work, for progress; from other threads too.
    """
    interpreter, cores = describe_interpreter(), describe_cores()
    imports = probe_imports(modules_to_import(asked), step)
    if not asked:  # a name of the list that this version of its package does not have says nothing
        imports = tuple(found for found in imports if not (found.error or "").startswith("ModuleNotFoundError"))
    scaling = measure_scaling(step=step) if probe and cores.usable > 1 else None
    verdict = judge(interpreter, cores, survey(), imports, scaling, asked=bool(asked))
    return Report(interpreter, cores, survey(), imports, scaling, notes_on(sys.version_info[:2], interpreter), verdict)


def modules_to_import(asked: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that :func:`examine` imports. On a GIL build there is nothing to find out, unless asked."""
    if asked:
        return tuple(dict.fromkeys(asked))
    return installed(WELL_KNOWN) if not sys._is_gil_enabled() else ()


def judge(
    interpreter: Interpreter,
    cores: Cores,
    loops: Sequence[LoopLibrary],
    imports: Sequence[ImportProbe],
    scaling: Scaling | None,
    *,
    asked: bool,
) -> Verdict:
    """Decide whether Python code can run in parallel.

    Args:
        asked: The user named the modules in ``imports``: one that switches the GIL on decides the verdict. One of the
            well-known modules only earns a warning, as the program may never import it.
    """
    blamed = tuple(_blame(found) for found in imports if found.enables_gil)
    reasons = (*_reasons(interpreter, cores), *(blamed if asked else ()))
    warnings = (
        *(() if asked else blamed),
        *(f"{found.module} {found.outcome}: {found.error}" for found in imports if found.error is not None),
        *(f"{library.fault}; 'polyloop run --loop {library.name}' refuses it" for library in loops if library.fault),
        *(_about_scaling(scaling) if not reasons else ()),
    )
    return Verdict(not reasons, _summary(interpreter, cores, reasons), reasons, warnings)


def notes_on(version: tuple[int, int], interpreter: Interpreter) -> tuple[str, ...]:
    """Return known limits of this version of CPython that bear on parallel asyncio."""
    if interpreter.build != "free-threaded" or version > (3, 13):
        return ()
    return (
        "3.13t: a future or task touched from a foreign thread can crash the interpreter (fixed in 3.14)",
        "3.13t: compiled patterns, class attributes and longer constants slow threads that share them (better in 3.14)",
    )


def _reasons(interpreter: Interpreter, cores: Cores) -> list[str]:
    reasons: list[str] = []
    if interpreter.build == "GIL":
        reasons.append("this is a GIL build: install a free-threaded one, for example with 'uv python install 3.14t'")
    elif interpreter.gil_enabled and interpreter.gil_setting is not None:
        reasons.append(f"the GIL is on because of {interpreter.gil_setting}: remove that setting")
    elif interpreter.gil_enabled:
        reasons.append("the GIL is on: something that was imported at start-up switched it on; try 'python -I'")
    if cores.usable < 2:
        reasons.append("only one core may be used: raise the CPU affinity or the CPU limit of the container")
    return reasons


def _summary(interpreter: Interpreter, cores: Cores, reasons: Sequence[str]) -> str:
    if reasons:
        return f"cannot run Python code in parallel: {reasons[0]}"
    return f"can run Python code in parallel on {cores.usable} cores (Python {interpreter.version}, free-threaded)"


def _blame(found: ImportProbe) -> str:
    culprit = f" (because of {found.culprit})" if found.culprit not in {None, found.module} else ""
    advice = "upgrade it, do without it, or set PYTHON_GIL=0 at your own risk"
    return f"importing {found.module} switches the GIL on{culprit}: {advice}"


def _about_scaling(scaling: Scaling | None) -> list[str]:
    if scaling is None:
        return []
    if scaling.processes < _BUSY:
        busy = f"the machine is busy: two processes ran only {scaling.processes:.2f}x as fast as one"
        return [f"{busy}, so two threads cannot do better"]
    if scaling.threads < _EXPECTED * scaling.processes:
        return [f"two threads ran only {scaling.threads:.2f}x as fast as one, two processes {scaling.processes:.2f}x"]
    return []
