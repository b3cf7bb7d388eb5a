"""A count that any thread raises and lowers, without a lock for each step."""

from collections import deque

from polyloop._core import _prims

#: Units beyond this are folded into a number, so that a count that only grows takes no memory.
FOLD_ABOVE = 4096
_FOLDED = FOLD_ABOVE // 2


class Tally:
    """How many items were put and not reported done: the length of a deque, and a number for what is more than that.

    Both change so that their sum is never too low meanwhile: nobody takes it for zero by mistake.

    Attributes:
        units: ``units.append(None)`` raises the count. Whoever does calls ``fold`` if they have become many.
    """

    __slots__ = ("_folded", "_lock", "units")

    def __init__(self) -> None:
        self.units: deque[None] = deque()
        self._folded = 0  # guarded by _lock; read without it
        self._lock = _prims.RLock()  # one that a finaliser may take again which the collector calls under it

    @property
    def count(self) -> int:
        """The count; too high by a fold while one is made."""
        return self._folded + len(self.units)

    def is_zero(self) -> bool:
        """Whether the count was zero at some moment of this call."""
        if self._folded or self.units:
            return False
        with self._lock:  # between the two looks nothing is folded, nor unfolded
            return self.count == 0

    def fold(self) -> None:
        """Keep the units few. Then look whether the count is zero: to others it was too high meanwhile."""
        with self._lock:
            if len(self.units) <= FOLD_ABOVE:
                return
            self._folded += _FOLDED
            for popped in range(_FOLDED):
                try:
                    self.units.pop()
                except IndexError:  # others were lowering it
                    self._folded -= _FOLDED - popped
                    return

    def lower(self) -> bool:
        """Lower the count by one; ``False`` if it is zero."""
        try:
            self.units.pop()
        except IndexError:
            return self._lower_folded()
        return True

    def _lower_folded(self) -> bool:
        # The unit that the caller lowers by is in one of the two. All is done under the lock, so that no fold and no
        # other unfolding moves it from where the caller has yet to look to where it has looked.
        with self._lock:
            while True:
                try:
                    self.units.pop()
                except IndexError:
                    if not self._folded:
                        return False
                else:
                    return True
                block = min(self._folded, _FOLDED)  # a fold may have found less
                self.units.extend([None] * block)
                self._folded -= block
