"""Find the coroutine function that ``polyloop run`` starts, and tell exactly what is wrong where there is none."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from types import ModuleType
from typing import Any

from polyloop.cli._errors import CliError

type AsyncFunction = Callable[..., Coroutine[Any, Any, object]]


def load_program(target: str, argv: Sequence[str]) -> AsyncFunction:
    """Import ``module:function`` and return the function.

    The working directory is put first on ``sys.path`` and ``sys.argv`` is set, both as ``python -m`` does it.

    Raises:
        CliError: the target is malformed, the module or the attribute does not exist, or it is no coroutine function.
        BaseException: whatever the module itself raises while it is imported.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise CliError(f"target {target!r} is not MODULE:FUNCTION", hint=f"write {module_name or 'app'}:main")
    _enter_working_directory()
    sys.argv = [target, *argv]
    module = _import(module_name)
    sys.argv[0] = getattr(module, "__file__", None) or target
    return _coroutine_function(_attribute(module, attribute), target)


def start_program(function: AsyncFunction, args: Sequence[str]) -> Coroutine[Any, Any, object]:
    """Call ``function``: with ``args`` as strings if it takes positional parameters, with nothing if it takes none.

    Raises:
        CliError: the number of arguments does not fit.
    """
    signature = inspect.signature(function)
    if not any(parameter.kind in _POSITIONAL for parameter in signature.parameters.values()):
        return function()
    try:
        signature.bind(*args)
    except TypeError as exc:
        shown = f"{getattr(function, '__name__', function)}{signature}"
        raise CliError(
            f"cannot call {shown} with {len(args)} arguments: {exc}", hint="give them after the target"
        ) from exc
    return function(*args)


_POSITIONAL = {
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
}


def _enter_working_directory() -> None:
    """Look for modules in the working directory first, unless -P or PYTHONSAFEPATH asked not to."""
    here = os.getcwd()
    if not sys.flags.safe_path and here not in sys.path[:1]:
        sys.path.insert(0, here)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # A module that the program itself fails to import is the program's error and keeps its traceback.
        if exc.name is None or not (name == exc.name or name.startswith(f"{exc.name}.")):
            raise
        raise CliError(f"no module named {exc.name!r}", hint=f"start it where 'import {name}' works") from exc
    except TypeError as exc:
        if not name.startswith("."):
            raise
        raise CliError(f"relative module name {name!r}", hint="write the full name, as in package.module") from exc


def _attribute(module: ModuleType, path: str) -> object:
    found: object = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = sorted(name for name, value in vars(module).items() if inspect.iscoroutinefunction(value))
            hint = f"it has {', '.join(names[:5])}" if names else "define 'async def main()' in it"
            raise CliError(f"module {module.__name__!r} has no attribute {path!r}", hint=hint) from None
    return found


def _coroutine_function(found: object, target: str) -> AsyncFunction:
    call = found if inspect.isroutine(found) or inspect.isclass(found) else getattr(found, "__call__", found)  # noqa: B004
    if not (inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(call)):
        kind = "an async generator" if inspect.isasyncgenfunction(found) else f"{type(found).__name__}"
        raise CliError(f"{target!r} is not a coroutine function but {kind}", hint="define it with 'async def'")
    function: AsyncFunction = found  # type: ignore[assignment]  # checked above, which mypy cannot follow
    return function
