"""Which names a program may change while threads run: read off its code, so that other accesses need no switch.

To switch threads before an instruction is only of use if the instruction can meet another thread's: it reads what
another may write, or writes what another may read. Most attribute reads of real code read what is set in ``__init__``
and never again. So the code of the modules under test is read once: an attribute that is stored in constructors only,
a method, a global that no function rebinds and a closure variable that is never rebound are constants, and whoever
reads them need not be stopped. What is changed by other means than ``obj.name = ...`` is taken for changeable when its
name stands as a string in the code of a function (``setattr``, ``__dict__``).
"""

import dis
import importlib.abc
import linecache
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, ModuleType
from typing import Any

#: What is called with an object that nobody else has yet.
CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__"})
_OPTIMIZED = 0x1  # inspect.CO_OPTIMIZED: the code of a function, not of a class or a module
_CACHE = dis.opmap["CACHE"]
_EXTENDED_ARG = dis.opmap["EXTENDED_ARG"]
_STORES = {dis.opmap[name]: name for name in dis.opmap if name.startswith(("STORE_", "DELETE_"))}

#: Names a function among the code of its file.
type CodeKey = tuple[str, int]


def code_key(code: CodeType) -> CodeKey:
    """The same for a function and for its code compiled again."""
    return code.co_qualname, code.co_firstlineno


def stores(code: CodeType) -> Iterator[tuple[str, str, bool]]:
    """What ``code`` stores and deletes: the instruction, the name, and whether it is an attribute of ``self``."""
    raw = code.co_code
    high = 0
    op = arg = before = before_arg = 0
    for at in range(0, len(raw), 2):
        if op not in (_CACHE, _EXTENDED_ARG):
            before, before_arg = op, arg
        op, arg = raw[at], raw[at + 1] | high
        if op == _EXTENDED_ARG:
            high = arg << 8
            continue
        high = 0
        kind = _STORES.get(op)
        if kind is None:
            continue
        if kind.endswith(("_ATTR", "_GLOBAL", "_NAME")):
            yield kind, code.co_names[arg], _loads_self(code, before, before_arg)
        elif kind.endswith("_DEREF"):
            yield kind, _variable(code, arg), False


def _variable(code: CodeType, arg: int) -> str:
    undocumented: Any = code
    name: str = undocumented._varname_from_oparg(arg)
    return name


def _loads_self(code: CodeType, op: int, arg: int) -> bool:
    """Whether an instruction puts the first argument on the stack (``__new__`` has the object in a local variable)."""
    kind = dis.opname[op]
    if kind.startswith("LOAD_FAST"):
        return code.co_name == "__new__" or (arg & 15 if kind.count("LOAD_FAST") > 1 else arg) == 0
    return kind == "LOAD_DEREF" and _variable(code, arg) in code.co_varnames[:1]


@dataclass
class Names:
    """What is known about the names of some files."""

    changing: set[str] = field(default_factory=set[str])  # attributes stored outside of constructors
    constant: set[str] = field(default_factory=set[str])  # attributes stored in constructors, and methods
    rebound: dict[str, set[str]] = field(default_factory=dict[str, set[str]])  # globals that functions store, by file
    cells: dict[tuple[str, CodeKey], set[str]] = field(default_factory=dict[tuple[str, CodeKey], set[str]])

    def add(self, other: "Names") -> None:
        """Take in what is known about other files."""
        self.changing |= other.changing
        self.constant |= other.constant
        self.rebound |= other.rebound
        self.cells |= other.cells

    def attribute_changes(self, name: str, *, method: bool) -> bool:
        """Whether an attribute may be stored while threads run. An unknown one may, unless it is called at once."""
        if name in self.changing:
            return True
        return not (method or name in self.constant)

    def global_changes(self, file: str, name: str) -> bool:
        """Whether a function stores this global."""
        return name in self.rebound.get(file, ())

    def cell_changes(self, code: CodeType, name: str) -> bool:
        """Whether a closure variable is stored more than once; in code that was not read, it is."""
        changing = self.cells.get((code.co_filename, code_key(code)))
        return changing is None or name in changing


class _Reader:
    """Reads the code of one file into ``names``."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.names = Names(rebound={file: set()})

    def read(self, code: CodeType) -> set[str]:
        """Take in ``code`` and all within; return which closure variables of others are stored there."""
        stored = [store for store in stores(code) if self._global(store[0], store[1])]
        cells = [name for kind, name, _ in stored if kind.endswith("_DEREF")]
        from_within: set[str] = set()
        children = [const for const in code.co_consts if isinstance(const, CodeType)]
        for child in children:
            from_within |= self.read(child)
        changing = from_within | {name for name in cells if name in code.co_freevars} | self._own_cells(code, cells)
        self._spread(code, changing)
        self._attributes(code, stored)
        return {name for name in changing if name in code.co_freevars}

    def _global(self, kind: str, name: str) -> bool:
        if kind.endswith("_GLOBAL"):
            self.names.rebound[self.file].add(name)
            return False
        return True

    @staticmethod
    def _own_cells(code: CodeType, cells: list[str]) -> set[str]:
        loops = any(dis.opname[op].startswith("JUMP_BACKWARD") for op in code.co_code[::2])
        return {name for name in cells if loops or cells.count(name) > 1}

    def _spread(self, code: CodeType, changing: set[str]) -> None:
        """Tell ``code`` and all within which of their closure variables change."""
        known = self.names.cells.setdefault((self.file, code_key(code)), set())
        known |= changing & {*code.co_cellvars, *code.co_freevars}
        for const in code.co_consts:
            if isinstance(const, CodeType):
                self._spread(const, changing & set(const.co_freevars))

    def _attributes(self, code: CodeType, stored: list[tuple[str, str, bool]]) -> None:
        names = self.names
        function = bool(code.co_flags & _OPTIMIZED)
        made = code.co_name in CONSTRUCTORS
        for kind, name, on_self in stored:
            if kind.endswith("_ATTR"):
                (names.constant if made and on_self else names.changing).add(name)
            elif kind.endswith("_NAME") and "__qualname__" in code.co_names:  # in the body of a class
                names.constant.add(name)
        if function:
            names.changing |= {const for const in code.co_consts if isinstance(const, str) and const.isidentifier()}


def read_code(code: CodeType) -> Names:
    """What one piece of code says about names."""
    reader = _Reader(code.co_filename)
    reader.read(code)
    return reader.names


@lru_cache(maxsize=2000)
def _read_file(file: str, module_name: str) -> Names | None:
    code = _code_of_module(file, sys.modules.get(module_name))
    if code is None:
        return None
    reader = _Reader(file)
    reader.read(code)
    return reader.names


def _code_of_module(file: str, module: ModuleType | None) -> CodeType | None:
    loader: Any = getattr(getattr(module, "__spec__", None), "loader", None)
    if isinstance(loader, importlib.abc.InspectLoader):
        try:
            return loader.get_code(module.__name__ if module is not None else "")
        except (ImportError, SyntaxError):
            return None
    source = "".join(linecache.getlines(file))
    try:
        return compile(source, file, "exec", dont_inherit=True) if source else None
    except SyntaxError:  # an example in a page, say
        return None


def read_package(file: str, module_name: str, wanted: Callable[[str, str], bool]) -> dict[str, Names | None]:
    """Read a file and what is loaded of its package: for each file what it says, ``None`` if it cannot be read."""
    found: dict[str, Names | None] = {file: _read_file(file, module_name)}
    top = module_name.partition(".")[0]
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != top or name == "__main__":
            continue
        other = getattr(module, "__file__", None)
        if other and other.endswith(".py") and other not in found and wanted(other, name):
            found[other] = _read_file(other, name)
    return found
