"""Notices when an import switches the GIL back on, and names the module.

An extension module that does not declare itself safe makes the interpreter enable the GIL while it is imported, after
which nothing runs in parallel any more. CPython warns too, but in the middle of an import that may have happened
anywhere, and filters often swallow it.

A finder at the front of ``sys.meta_path`` that never finds anything sees the name of each import before it happens;
when the GIL turns out to be on at the next look, the last name seen that led to an extension module is the culprit.
Looks are taken at the next import and whenever a runtime asks.

While an extension module is created, CPython holds the GIL for a moment (``_PyEval_EnableGILTransient``), until the
module has said that it does without. Such a moment proves nothing: a look that finds a thread there leaves it to the
next one.
"""

import importlib.abc
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import FrameType, ModuleType

from polyloop._core import _prims
from polyloop._core._errors import GilEnabledWarning

#: Names kept; an import that fails, over and over again, is one each time. A guess at what one look can be late by.
_NAMES_KEPT = 256


class GilWatch(importlib.abc.MetaPathFinder):
    """Warns once when the GIL comes on. Any thread may import and look.

    Attributes:
        culprit: Name of the module whose import switched the GIL on, once known.
        watching: Whether it looks at imports.
    """

    def __init__(self) -> None:
        self.culprit: str | None = None
        self._recent: deque[str] = deque(maxlen=_NAMES_KEPT)  # names of imports; appended by any thread
        self._known: set[str] = set(sys.modules)
        self._armed = [None]  # popped by the one thread that warns
        self.watching = False  # set by those who start and stop it, read by every import

    def install(self) -> None:
        """Watch from now on; does nothing on a build with the GIL, or when it is on already."""
        if _prims.gil_enabled():
            return
        self.watching = True
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop watching, and stay in ``sys.meta_path``.

        The import system walks through that very list: in an import on another thread, a finder that is taken out
        makes it skip the one behind. (One that is put in at the front makes it ask one twice, which does no harm.)
        """
        self.watching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """Note the name and find nothing: the other finders do the work."""
        if self.watching and self._armed:
            creating = self.look()
            self._recent.append(fullname)
            if creating is not None:  # and is over only after what it imports: it has not said yet what it needs
                self._recent.append(creating)
        return None

    def look(self) -> str | None:
        """Warn, once, if the GIL is on now; return the name of an extension module that is just being created."""
        if not self._armed or not _prims.gil_enabled():
            return None
        creating = _extension_in_creation()
        if creating is not None:
            return creating
        try:
            self._armed.pop()  # atomic: one thread warns
        except IndexError:
            return None
        self._warn()
        return None

    def _warn(self) -> None:
        self.culprit = self._find_culprit()
        name = "an extension module" if self.culprit is None else f"module {self.culprit!r}"
        warnings.warn(
            f"the import of {name} switched the GIL on: from now on the loops of polyloop take turns on one core;"
            " use a version of it that supports free threading, or set PYTHON_GIL=0 if you know it to be safe",
            GilEnabledWarning,
            stacklevel=3,
        )

    def _find_culprit(self) -> str | None:
        recent = self._recent.copy()
        for name in reversed(recent):
            module = sys.modules.get(name)
            spec = getattr(module, "__spec__", None)
            if spec is not None and isinstance(spec.loader, ExtensionFileLoader):
                return name
        for name in reversed(recent):  # still being imported, or its import failed
            if name not in sys.modules or name not in self._known:
                return name
        return None


def _extension_in_creation() -> str | None:
    """The outermost extension module that some thread is creating, if any. Stops the world for a moment."""
    found: str | None = None
    create = ExtensionFileLoader.create_module.__code__
    for frame in sys._current_frames().values():
        at: FrameType | None = frame
        while at is not None:
            if at.f_code is create:
                found = at.f_locals["spec"].name
            at = at.f_back
    return found


gil_watch = GilWatch()
