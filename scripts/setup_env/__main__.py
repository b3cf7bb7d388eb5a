"""``python3 -m scripts.setup_env [main|tools|loops|uv]``: make an environment, or see that it is there."""

from __future__ import annotations

import sys

from . import steps
from . import uv as uv_tool
from .choose import FREE_THREADED_WORDS, newest
from .console import StepError, fail, note, step
from .environment import MAIN, TOOLS, Environment
from .paths import ROOT, locked


def ensure_main() -> None:
    """``.venv``: what demo, test and benchmarks run in."""
    if _is_current(MAIN):
        return
    uv = uv_tool.find_or_install()
    MAIN.create(uv, steps.interpreter(uv, MAIN.chosen()))


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


def print_uv() -> None:
    """The path of the uv in use, as the last line of the output, for `make lock`."""
    print(uv_tool.find_or_install().path)


def _is_current(environment: Environment) -> bool:
    interpreter = environment.current()
    if interpreter is None:
        return False
    note(f"{environment.path.name} is up to date: {interpreter}")
    if environment is MAIN and not interpreter.startswith(FREE_THREADED_WORDS):
        note("with a GIL nothing runs in parallel; `make clean setup` looks for a free-threaded Python again")
    return True


TARGETS = {"main": ensure_main, "tools": ensure_tools, "loops": ensure_loops, "uv": print_uv}


def main(arguments: "list[str]") -> None:
    wanted = arguments[0] if arguments else "main"
    if wanted not in TARGETS or sys.version_info < (3, 9):
        fail(f"usage: python3 -m scripts.setup_env [{'|'.join(TARGETS)}] (python3 being 3.9 or newer)")
    try:
        with locked(f"checkout-{str(ROOT).strip('/').replace('/', '-')}"):
            TARGETS[wanted]()
    except StepError as error:
        fail(str(error))
    except KeyboardInterrupt:
        step("interrupted; nothing half-made is in use, run it again")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main(sys.argv[1:])
