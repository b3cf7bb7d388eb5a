"""``shared``: one executor for each address, for those who choose the place of their work by a string."""

import os

from polyloop._core import _prims
from polyloop.distributed._offload import DaskOffload


class _Shared:
    def __init__(self) -> None:
        self._lock = _prims.Lock()  # guards _by_url
        self._by_url: dict[str, DaskOffload] = {}

    def get(self, url: str) -> DaskOffload:
        fresh = DaskOffload.from_url(url)  # costs nothing before it is used
        with self._lock:
            found = self._by_url.get(url)
            if found is not None and found._state in ("new", "open"):
                return found
            self._by_url[url] = fresh
        return fresh

    def reset(self) -> None:
        """In a forked child: those of the parent are of no use, and the lock may be held by one of its threads."""
        self.__init__()  # type: ignore[misc]


_shared = _Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.reset)


def shared(address: str) -> DaskOffload:
    """The executor of this process for ``address``, made at the first call; it is closed at the end of the program.

    One that was lost or shut down is replaced by a new one.

    Args:
        address: As for ``DaskOffload.from_url``; another string with the same meaning has its own.
    Raises:
        ModuleNotFoundError: Dask is not installed.
        ValueError: it is no such address.
    Thread safety: any thread. Connecting begins with the first call.

    .. versionadded:: 0.3
    """
    return _shared.get(address)
