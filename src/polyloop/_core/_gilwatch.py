"""Notices when an import switches the GIL back on, and names the module.

An extension module that does not declare itself safe makes the interpreter enable the GIL while it is imported, after
which nothing runs in parallel any more. CPython warns too, but in the middle of an import that may have happened
anywhere, and filters often swallow it.

A finder at the front of ``sys.meta_path`` that never finds anything sees the name of each import before it happens;
when the GIL turns out to be on at the next look, the last name seen that led to an extension module is the culprit.
Looks are taken at the next import and whenever a runtime asks.
"""

import importlib.abc
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType

from polyloop._core import _prims
from polyloop._core._errors import GilEnabledWarning


class GilWatch(importlib.abc.MetaPathFinder):
    """Warns once when the GIL comes on. Any thread may import and look.

    Attributes:
        culprit: Name of the module whose import switched the GIL on, once known.
    """

    def __init__(self) -> None:
        self.culprit: str | None = None
        self._recent: list[str] = []  # names seen while the GIL was off; appended by any thread
        self._known: set[str] = set(sys.modules)
        self._armed = [None]  # popped by the one thread that warns

    def install(self) -> None:
        """Watch from now on; does nothing on a build with the GIL, or when it is on already."""
        if not _prims.gil_enabled() and self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop watching."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """Note the name and find nothing: the other finders do the work."""
        self.look()
        self._recent.append(fullname)
        return None

    def look(self) -> None:
        """Warn, once, if the GIL is on now."""
        if not _prims.gil_enabled():
            return
        try:
            self._armed.pop()  # atomic: one thread warns
        except IndexError:
            return
        self.remove()
        self.culprit = self._find_culprit()
        name = "an extension module" if self.culprit is None else f"module {self.culprit!r}"
        warnings.warn(
            f"the import of {name} switched the GIL on: from now on the loops of polyloop take turns on one core;"
            " use a version of it that supports free threading, or set PYTHON_GIL=0 if you know it to be safe",
            GilEnabledWarning,
            stacklevel=2,
        )

    def _find_culprit(self) -> str | None:
        for name in reversed(self._recent):
            module = sys.modules.get(name)
            spec = getattr(module, "__spec__", None)
            if spec is not None and isinstance(spec.loader, ExtensionFileLoader):
                return name
        for name in reversed(self._recent):  # still being imported, or its import failed
            if name not in sys.modules or name not in self._known:
                return name
        return None


gil_watch = GilWatch()
