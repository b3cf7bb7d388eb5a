"""The order in which an interpreter is looked for. Each step says what it does, and why the next one was tried."""

from __future__ import annotations

import json
from typing import Callable, List, Optional, Sequence

from . import apt, cpython
from .choose import Interpreter, interpreters_from_uv, newest
from .console import StepError, note, notice, run, step
from .uv import Uv

DOWNLOADED = "3.14t"
_DOWNLOAD_TIMEOUT_S = 300.0
_CONNECT_TIMEOUT_S = "10"

_PROBE = """
import json, platform, sys, sysconfig
print(json.dumps([list(sys.version_info[:3]), bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
                  sys.version_info.releaselevel == "final", platform.python_implementation()]))
"""


def probe(path: str) -> Interpreter:
    """Ask an executable what it is.

    Raises:
        StepError: it does not run, or is no CPython >= 3.13.
    """
    version, free_threaded, final, implementation = json.loads(run([path, "-c", _PROBE], timeout=60))
    if implementation != "CPython" or tuple(version) < (3, 13):
        seen = f"{implementation} {'.'.join(map(str, version))}"
        raise StepError(f"{path} is {seen}; polyloop needs CPython 3.13 or newer")
    return Interpreter(path, (version[0], version[1], version[2]), free_threaded, final)


def interpreter(uv: Uv, chosen: Optional[str]) -> Interpreter:
    """The interpreter for ``.venv``: the one that a person chose, or the best there is.

    Raises:
        StepError: this machine has none and none can be had; the message has the reason of every step.
    """
    if chosen:
        step(f"interpreter: {chosen}, because POLYLOOP_PYTHON says so")
        found = probe(chosen)
        if not found.free_threaded:
            _warn_of_gil(found, ["you asked for it"])
        return found
    installed = installed_interpreters(uv)
    reasons: List[str] = []
    for title, attempt in _attempts(uv, installed):
        step(f"interpreter: {title}")
        try:
            found = attempt()
        except StepError as error:
            reasons.append(f"{title}: {error}")
            note(f"no: {_short(str(error))}")
        else:
            note(f"using {found}")
            return found
    fallback = newest(installed, free_threaded=False, at_least=(3, 13))
    if fallback is None:
        raise StepError("no Python that can run polyloop (>= 3.13) was found or made:\n\n" + "\n\n".join(reasons))
    _warn_of_gil(fallback, [_short(reason) for reason in reasons])
    return fallback


def installed_interpreters(uv: Uv) -> "List[Interpreter]":
    """What uv finds on this machine, our own builds included."""
    return interpreters_from_uv(uv.installed_pythons())


def _attempts(uv: Uv, installed: Sequence[Interpreter]) -> "List[tuple[str, Callable[[], Interpreter]]]":
    attempts: "List[tuple[str, Callable[[], Interpreter]]]" = [
        ("a free-threaded Python on this machine, 3.14 or newer before 3.13", lambda: _found(installed)),
        (f"uv python install {DOWNLOADED}", lambda: _downloaded(uv)),
    ]
    if apt.is_debian_like():
        attempts.append(("a build from the distribution's source package", _built))
    return attempts


def _found(installed: Sequence[Interpreter]) -> Interpreter:
    best = newest(installed, free_threaded=True, at_least=(3, 14)) or newest(
        installed, free_threaded=True, at_least=(3, 13), below=(3, 14)
    )
    if best is None:
        seen = ", ".join(sorted({".".join(map(str, one.version)) for one in installed})) or "none"
        raise StepError(f"there is none (CPython with a GIL: {seen})")
    return probe(best.path)


def _downloaded(uv: Uv) -> Interpreter:
    # Few and short tries: where no download server can be reached, the answer should take seconds.
    quick = {"UV_HTTP_RETRIES": "0", "UV_HTTP_CONNECT_TIMEOUT": _CONNECT_TIMEOUT_S}
    uv("python", "install", "--no-bin", DOWNLOADED, env=quick, timeout=_DOWNLOAD_TIMEOUT_S)
    best = newest(installed_interpreters(uv), free_threaded=True, at_least=(3, 14))
    if best is None:
        raise StepError(f"uv installed {DOWNLOADED} and yet does not find it")
    return best


def _built() -> Interpreter:
    return probe(str(cpython.build_from_source_package()))


def _short(text: str) -> str:
    """The line of a message that a person wants first: uv and apt put the cause last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("cause:", "E:", "error:"))]
    return (causes[-1] if causes else lines[0]) if lines else text


def _warn_of_gil(found: Interpreter, reasons: Sequence[str]) -> None:
    notice(
        f"USING A PYTHON WITH A GIL: {found}",
        [
            "polyloop works on it, but nothing runs in parallel:",
            "- CPU work on N loops takes as long as on one, and the benchmarks show no gain",
            "- tests and stress prove little about what only free threads can break",
            *(f"why: {reason}" for reason in reasons),
            "to change this: mend one of these, or set POLYLOOP_PYTHON to a free-threaded one; then make clean setup",
        ],
    )
