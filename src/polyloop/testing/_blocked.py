"""The blocked-detector for several loops; how one loop answers stands in ``_worker``."""

from typing import TYPE_CHECKING

from polyloop._core import _prims
from polyloop.testing._worker import ANSWER

if TYPE_CHECKING:
    from polyloop.testing._loop import TestLoop


def wait_all_blocked(*loops: "TestLoop") -> None:
    """Wait until all of ``loops`` are blocked at one moment, however they wake each other before.

    Plain threads and offloaded calls are not waited for.

    Raises:
        TimeoutError: they did not come to rest in time.
    Thread safety: a plain thread.

    .. versionadded:: 0.1
    """
    deadline = _prims.monotonic() + max((loop._timeout for loop in loops), default=0)
    before = [loop._settle() for loop in loops]
    while len(loops) > 1:
        after = [loop._settle() for loop in loops]
        if all(new - old <= ANSWER for old, new in zip(before, after, strict=True)):
            return
        if _prims.monotonic() > deadline:
            raise TimeoutError(f"{', '.join(map(repr, loops))} keep each other busy")
        before = after
