"""Where an exploration may switch: before each instruction, and each call, that can touch what threads share.

``sys.monitoring`` calls back before an instruction of the code under test, on the thread that is about to execute it.
Instructions that touch only what the thread itself has (its local variables, its stack, constants) are switched off at
their first execution and cost nothing from then on: two schedules that differ only in the place of such an instruction
do the same. Calls are judged by what is called: a function whose own instructions are watched needs no stop before it,
a method of a container does.
"""

import contextlib
import dis
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable
from itertools import pairwise
from types import CodeType, ModuleType
from typing import Any, cast

from polyloop._core import _prims
from polyloop.testing._explore_names import CONSTRUCTORS, Names, read_code, read_package
from polyloop.testing._explore_run import State
from polyloop.testing._explore_worker import get_ident

_monitoring = sys.monitoring
_EVENTS = _monitoring.events
_PACKAGE = __name__.rpartition(".")[0]
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

#: Instructions that touch nothing that another thread can see, or nothing but what is stopped for by itself: calls are
#: judged when they are made, and a generator's or context manager's own code is watched.
_LOCAL_PREFIXES = (
    "LOAD_FAST", "STORE_FAST", "LOAD_CONST", "LOAD_SMALL", "LOAD_COMMON", "LOAD_SPECIAL", "LOAD_SUPER", "LOAD_BUILD",
    "LOAD_LOCALS", "LOAD_CLOSURE", "LOAD_ASSERTION", "LOAD_NAME", "LOAD_FROM_DICT", "STORE_NAME", "DELETE_NAME",
    "DELETE_FAST", "RETURN", "INTERPRETER_EXIT", "JUMP", "POP", "END", "PUSH", "COPY", "SWAP", "NOP", "NOT_TAKEN",
    "RESUME", "CACHE", "EXTENDED_ARG", "BUILD", "MAKE", "SET_FUNCTION", "KW_NAMES", "IS_OP", "UNARY", "RERAISE",
    "RAISE", "CHECK", "CLEANUP", "GET_AWAITABLE", "GET_ANEXT", "GET_AITER", "GET_YIELD", "SEND", "YIELD", "IMPORT",
    "CALL", "LIST_APPEND", "SET_ADD", "MAP_ADD", "SETUP_ANNOTATIONS", "MATCH_MAPPING", "MATCH_SEQUENCE",
    "CONVERT_VALUE", "FORMAT", "BEFORE_WITH", "BEFORE_ASYNC_WITH", "WITH_EXCEPT_START", "EXIT_INIT",
    "ENTER_EXECUTOR", "INSTRUMENTED",
)  # fmt: skip

_IMMUTABLE: frozenset[type] = frozenset({
    int, float, complex, str, bytes, bool, type(None), tuple, frozenset, range, type, type(...), type(NotImplemented),
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.CodeType,
})  # fmt: skip

#: Functions that look at nothing of their argument that changes.
_LOCAL_CALLS: frozenset[Any] = frozenset({isinstance, issubclass, callable, id, hash, print, iter, cast})

#: Modules that are never under test unless named.
_TOOLS = frozenset({"pytest", "_pytest", "pluggy", "pytest_timeout", "faulthandler", "coverage", "debugpy", "pydevd"})

#: A module holds the import lock while it is executed; a finaliser may be called at any time.
_NEVER_STOPPED = frozenset({"<module>", "__del__"})

type Wanted = Callable[[str, str], bool]


def default_trace(file: str, module: str) -> bool:
    """Everything but the standard library, the tools of testing and this explorer."""
    if file.startswith((_HERE, "<frozen")) or module.startswith(_PACKAGE) or module.partition(".")[0] in _TOOLS:
        return False
    return not (file.startswith(_STDLIB) and "site-packages" not in file and "dist-packages" not in file)


_STDLIB = tuple(
    {os.path.realpath(path) + os.sep for path in map(sysconfig.get_path, ("stdlib", "platstdlib"))}
    | {path + os.sep for path in map(sysconfig.get_path, ("stdlib", "platstdlib"))}
)


def chosen_trace(modules: Iterable[str | ModuleType]) -> Wanted:
    """The modules named, and what is within them."""
    names = {module if isinstance(module, str) else module.__name__ for module in modules}

    def wanted(file: str, module: str) -> bool:
        parts = module.split(".")
        inside = any(".".join(parts[: count + 1]) in names for count in range(len(parts)))
        return inside and not file.startswith(_HERE) and not module.startswith(_PACKAGE)

    return wanted


def describe_call(fn: object) -> str:
    """The name of what is called, as a reader would write it."""
    if isinstance(fn, str):
        return fn
    owner = getattr(fn, "__self__", None)
    name = getattr(fn, "__qualname__", None) or type(fn).__name__
    if owner is not None and not isinstance(owner, (ModuleType, type)) and "." not in name:
        return f"{type(owner).__qualname__}.{name}()"
    return f"{name}()"


def _ends_with_self(code: CodeType, at: dis.Instruction) -> bool:
    """Whether the instruction leaves the first argument on top of the stack."""
    if not at.opname.startswith("LOAD_FAST") or not code.co_varnames:
        return False
    return _loaded(at)[-1:] == code.co_varnames[:1]


def _loaded(at: dis.Instruction) -> tuple[str, ...]:
    """The local variables that a ``LOAD_FAST`` of any kind puts on the stack."""
    return tuple(at.argval) if at.opname.count("LOAD_FAST") > 1 else (at.argval,)


def _hands_out_self(code: CodeType, instructions: list[dis.Instruction]) -> bool:
    """Whether a constructor does more with the new object than to set and read its attributes."""
    first = code.co_varnames[:1]
    for at, after in pairwise(instructions):
        if at.opname.startswith("LOAD_FAST"):
            if _ends_with_self(code, at):
                if not after.opname.endswith("_ATTR"):
                    return True
            elif first[0] in _loaded(at):
                return True
    return False


class Points:
    """The switch points of the code under test, and the callbacks of ``sys.monitoring``.

    Used by the thread that explores while no other runs, and by the callbacks, which run in any thread; those of
    threads outside of the exploration do nothing but find out where the points are.
    """

    def __init__(self, wanted: Wanted, state: State) -> None:
        self._wanted = wanted
        self._state = state
        self._tool = -1
        self._names = Names()
        self._files: dict[tuple[str, str], bool] = {}  # whether the code of a file and module is watched
        self._codes: dict[int, tuple[CodeType, frozenset[int], dict[str, Any]]] = {}  # by identity: codes are equal
        self.changed = False  # the points are not what they were: what was explored before was too coarse

    # Monitoring

    def start(self) -> None:
        """Watch from now on.

        Raises:
            RuntimeError: ``sys.monitoring`` has no free tool identity.
        """
        for tool in (4, 3):
            with contextlib.suppress(ValueError):
                _monitoring.use_tool_id(tool, "polyloop.testing.explore")
                self._tool = tool
                break
        else:
            raise RuntimeError("both free tool identities of sys.monitoring are taken; end the other tools")
        _monitoring.register_callback(self._tool, _EVENTS.PY_START, self._on_start)
        _monitoring.register_callback(self._tool, _EVENTS.INSTRUCTION, self._on_instruction)
        _monitoring.register_callback(self._tool, _EVENTS.CALL, self._on_call)
        _monitoring.set_events(self._tool, _EVENTS.PY_START)
        _monitoring.restart_events()  # an exploration before this one may have switched some off

    def stop(self) -> None:
        """Watch no more."""
        if self._tool < 0:
            return
        _monitoring.set_events(self._tool, 0)
        for code, _, _ in list(self._codes.values()):
            _monitoring.set_local_events(self._tool, code, 0)
        for event in (_EVENTS.PY_START, _EVENTS.INSTRUCTION, _EVENTS.CALL):
            _monitoring.register_callback(self._tool, event, None)
        _monitoring.free_tool_id(self._tool)
        self._tool = -1

    def _on_start(self, code: CodeType, offset: int) -> Any:
        if id(code) not in self._codes:
            spaces = sys._getframe(1).f_globals
            if self._is_wanted(code.co_filename, spaces):
                self._watch(code, spaces)
        return _monitoring.DISABLE

    def _is_wanted(self, file: str, spaces: dict[str, Any]) -> bool:
        key = (file, str(spaces.get("__name__", "")))  # generated code has no file, but a module
        wanted = self._files.get(key)
        if wanted is None:
            wanted = self._files[key] = self._wanted(*key)
        return wanted

    def _watch(self, code: CodeType, spaces: dict[str, Any]) -> None:
        if (code.co_filename, (code.co_qualname, code.co_firstlineno)) not in self._names.cells:
            self._read(code, str(spaces.get("__name__", "")))
        self._codes[id(code)] = (code, self._points_of(code, spaces), spaces)
        if code.co_name in _NEVER_STOPPED:
            return
        _monitoring.set_local_events(self._tool, code, _EVENTS.INSTRUCTION | _EVENTS.CALL)

    def _read(self, code: CodeType, module: str) -> None:
        """Learn what the file of ``code`` and its package say about names."""
        before = (len(self._names.changing), len(self._names.constant))
        found = read_package(code.co_filename, module, self._wanted)
        if found[code.co_filename] is None:
            found[code.co_filename] = read_code(code)
        for names in found.values():
            if names is not None:
                self._names.add(names)
        if self._codes and before != (len(self._names.changing), len(self._names.constant)):
            self._recompute()

    def _recompute(self) -> None:
        for key, (code, points, spaces) in list(self._codes.items()):
            new = self._points_of(code, spaces)
            if new != points:
                self._codes[key] = (code, new, spaces)
                self.changed = True
        if self.changed:
            _monitoring.restart_events()

    def _on_instruction(self, code: CodeType, offset: int) -> Any:
        entry = self._codes.get(id(code))
        if entry is None or offset not in entry[1]:
            return _monitoring.DISABLE
        run = self._state.run
        if run is not None and run.running == get_ident():
            run.point((code, offset, None))
        return None

    def _on_call(self, code: CodeType, offset: int, fn: object, first: object) -> Any:
        run = self._state.run
        if run is not None and run.running == get_ident() and self._is_visible(fn, first):
            # The object of a method is not kept: what is called when it is dropped depends on that.
            run.point((code, offset, fn if type(fn) is types.MethodDescriptorType else describe_call(fn)))

    # What is a point

    def _points_of(self, code: CodeType, spaces: dict[str, Any]) -> frozenset[int]:
        instructions = [at for at in dis.get_instructions(code) if at.opname not in {"EXTENDED_ARG", "CACHE"}]
        construction = code.co_name in CONSTRUCTORS and not _hands_out_self(code, instructions)
        found: set[int] = set()
        previous: dis.Instruction | None = None
        for at in instructions:
            own = (
                construction and at.opname == "STORE_ATTR" and previous is not None and _ends_with_self(code, previous)
            )
            if not own and self._touches(code, at, previous, spaces):
                found.add(at.offset)
            previous = at
        return frozenset(found)

    def _touches(self, code: CodeType, at: dis.Instruction, before: dis.Instruction | None, spaces: Any) -> bool:
        kind = at.opname
        if kind.startswith(_LOCAL_PREFIXES):
            return False
        if kind.endswith("_ATTR"):
            return self._touches_attribute(at, before, spaces)
        if kind.endswith("_GLOBAL"):
            return self._names.global_changes(code.co_filename, at.argval)
        if kind.endswith(("_DEREF", "_CLASSDEREF")):
            return self._names.cell_changes(code, at.argval)
        if kind in {"BINARY_OP", "COMPARE_OP", "CONTAINS_OP"}:
            # With a number or a string on the right the other operand is one too, or the result does not change.
            return not (before is not None and before.opname.startswith(("LOAD_CONST", "LOAD_SMALL"))) or (
                kind == "BINARY_OP" and "[" in at.argrepr
            )
        return True

    def _touches_attribute(self, at: dis.Instruction, before: dis.Instruction | None, spaces: Any) -> bool:
        name: str = at.argval
        owner = spaces.get(before.argval) if before is not None and before.opname == "LOAD_GLOBAL" else None
        if isinstance(owner, _prims.local):
            return False
        if at.opname != "LOAD_ATTR":
            return name in self._names.changing
        method = isinstance(owner, (ModuleType, type)) or bool((at.arg or 0) & 1)
        return self._names.attribute_changes(name, method=method)

    def _is_visible(self, fn: Any, first: object) -> bool:
        """Whether a call may touch what threads share, other than in code that is watched itself."""
        if type(fn) is types.MethodType:
            fn = fn.__func__
        kind: object = fn.__class__
        if kind is types.FunctionType:
            return not self._watches(fn) and fn not in _LOCAL_CALLS
        if isinstance(fn, type):
            return self._is_visible_type(fn, first)
        if kind is types.BuiltinFunctionType:
            owner = fn.__self__
            if owner is not None and not isinstance(owner, (ModuleType, type)):
                return type(owner) not in _IMMUTABLE
            if fn in _LOCAL_CALLS:
                return False
        if first is _monitoring.MISSING:
            return kind not in {types.BuiltinFunctionType, types.MethodDescriptorType}
        return type(first) not in _IMMUTABLE

    def _is_visible_type(self, cls: type[Any], first: object) -> bool:
        if first is _monitoring.MISSING or type(first) in _IMMUTABLE or issubclass(cls, (BaseException, type)):
            return False
        maker = getattr(cls, "__init__", None)
        return not (isinstance(maker, types.FunctionType) and self._watches(maker))

    def _watches(self, fn: types.FunctionType) -> bool:
        """Whether the code of a function has stops of its own: watched, or of the model."""
        file = fn.__code__.co_filename
        return file.startswith(_HERE) or self._is_wanted(file, fn.__globals__)
