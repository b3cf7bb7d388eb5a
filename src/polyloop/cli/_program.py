"""Find what ``polyloop run`` and ``serve`` start, and tell exactly what is wrong where there is none."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
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
    module_name, attribute = split_target(target, "target", "MODULE:FUNCTION", "main")
    _enter_working_directory()
    sys.argv = [target, *argv]
    module = _import(module_name)
    sys.argv[0] = getattr(module, "__file__", None) or target
    found = _attribute(module, attribute, inspect.iscoroutinefunction, "define 'async def main()' in it")
    return _coroutine_function(found, target)


def load_object(target: str, what: str, form: str, example: str) -> object:
    """Import ``module:name`` and return what it names: something that can be called, as a rule.

    Args:
        what: What it is on the command line, for errors: ``"target"``, ``"--on-start"``.
        form: How it is written: ``"MODULE:APP"``.
        example: A name that could stand after the colon.
    Raises:
        CliError: it is malformed, or the module or the attribute does not exist.
        BaseException: whatever the module itself raises while it is imported.
    """
    module_name, attribute = split_target(target, what, form, example)
    _enter_working_directory()
    module = _import(module_name)
    return _attribute(module, attribute, partial(_is_own_callable, module), f"define {example!r} in it")


def split_target(target: str, what: str, form: str, example: str) -> tuple[str, str]:
    """Split ``module:name``.

    Raises:
        CliError: it is malformed.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise CliError(f"{what} {target!r} is not {form}", hint=f"write {module_name or 'app'}:{example}")
    return module_name, attribute


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


def _is_own_callable(module: ModuleType, value: object) -> bool:
    """Whether the module made it, rather than import it: a class or function of its own, or a callable object."""
    if isinstance(value, type) or inspect.isroutine(value):
        return getattr(value, "__module__", None) == module.__name__
    return callable(value)


def _attribute(module: ModuleType, path: str, offered: Callable[[object], bool], otherwise: str) -> object:
    found: object = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = sorted(name for name, value in vars(module).items() if offered(value) and name[0] != "_")
            hint = f"it has {', '.join(names[:5])}" if names else otherwise
            raise CliError(f"module {module.__name__!r} has no attribute {path!r}", hint=hint) from None
    return found


def _coroutine_function(found: object, target: str) -> AsyncFunction:
    call = found if inspect.isroutine(found) or inspect.isclass(found) else getattr(found, "__call__", found)  # noqa: B004
    if not (inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(call)):
        kind = "an async generator" if inspect.isasyncgenfunction(found) else f"{type(found).__name__}"
        raise CliError(f"{target!r} is not a coroutine function but {kind}", hint="define it with 'async def'")
    function: AsyncFunction = found  # type: ignore[assignment]  # checked above, which mypy cannot follow
    return function
