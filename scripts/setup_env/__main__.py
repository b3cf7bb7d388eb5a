"""``python3 scripts/setup_env [main|tools|loops]``: make an environment of this checkout, or see in no time that it is there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import steps  # noqa: E402
import uv as uv_tool  # noqa: E402
from choose import newest  # noqa: E402
from console import StepFailed, fail, note, step  # noqa: E402
from environment import MAIN, TOOLS, Environment  # noqa: E402
from paths import ROOT, locked  # noqa: E402


def ensure_main() -> None:
    """``.venv``: what demo, test and benchmarks run in."""
    if _is_current(MAIN):
        return
    uv = uv_tool.find_or_install()
    MAIN.create(uv, steps.interpreter(uv))


def ensure_tools() -> None:
    """``.venv-tools``: linters, type checkers and Sphinx, on a Python with a GIL where there is one."""
    if _is_current(TOOLS):
        return
    uv = uv_tool.find_or_install()
    with_gil = newest(steps.installed_interpreters(uv), free_threaded=False, at_least=(3, 13))
    if with_gil is None:
        ensure_main()
        with_gil = steps.probe(str(MAIN.python.resolve()))
    TOOLS.create(uv, with_gil)


def ensure_loops() -> None:
    """Event loops of others (uvloop, rloop) in ``.venv``, for the tests and benchmarks that run on them."""
    ensure_main()
    MAIN.add(uv_tool.find_or_install(), "loops")


def _is_current(environment: Environment) -> bool:
    interpreter = environment.current()
    if interpreter is not None:
        note(f"{environment.path.name} is up to date: {interpreter}")
    return interpreter is not None


def main() -> None:
    targets = {"main": ensure_main, "tools": ensure_tools, "loops": ensure_loops}
    wanted = sys.argv[1] if len(sys.argv) > 1 else "main"
    if wanted not in targets or sys.version_info < (3, 9):
        fail(f"usage: python3 (3.9 or newer) scripts/setup_env [{'|'.join(targets)}]")
    try:
        with locked(f"checkout-{str(ROOT).strip('/').replace('/', '-')}"):
            targets[wanted]()
    except StepFailed as error:
        fail(str(error))
    except KeyboardInterrupt:
        step("interrupted; nothing half-made was left in use, run it again")
        raise SystemExit(130) from None


main()
