"""Pure: which calls wait here, and which are on the scheduler."""

from collections import OrderedDict
from collections.abc import Hashable


class Window[T: Hashable]:
    """At most ``size`` items are out at once; the others wait in order. Not for several threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        # In constant time its first item is found, and any is removed.
        self._waiting: OrderedDict[T, None] = OrderedDict()
        self._out: set[T] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._out)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def out(self) -> int:
        """How many are out."""
        return len(self._out)

    def add(self, item: T) -> None:
        """Let an item wait for its turn."""
        self._waiting[item] = None

    def next(self) -> T | None:
        """Let the first item out, if there is one and room for it."""
        if not self._waiting or len(self._out) >= self.size:
            return None
        item, _ = self._waiting.popitem(last=False)
        self._out.add(item)
        return item

    def remove(self, item: T) -> bool:
        """Forget an item, whether it waits or is out; say whether it was out."""
        if item in self._out:
            self._out.remove(item)
            return True
        del self._waiting[item]
        return False

    def those_waiting(self) -> list[T]:
        """The items that wait, the first one first."""
        return list(self._waiting)

    def all(self) -> list[T]:
        """All items."""
        return [*self._out, *self._waiting]
