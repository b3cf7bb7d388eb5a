"""``ResourceGuard``: tells two users of one thing that they are two, instead of letting them disturb each other."""

from types import TracebackType

from polyloop._core._context import who_by_name
from polyloop._core._errors import BusyResourceError


class _User:
    """Who is inside."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class ResourceGuard:
    """A block that only one task or thread may be in at a time; the next is refused, not made to wait.

    For what must not be shared, such as one end of a connection, and ought not to be by whoever uses it: as
    ``anyio.ResourceGuard``. Use it as ``with guard``, in coroutines and in plain threads.

    Args:
        action: What is done with the thing, for the error: ``using``, ``reading from``.
    Thread safety: any loop and any thread. The block may be left on another thread than it was entered on.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_action", "_inside")

    def __init__(self, action: str = "using") -> None:
        self._action = action
        self._inside: dict[None, _User] = {}  # one at most; single operations of any thread

    def __repr__(self) -> str:
        user = self._inside.get(None)
        state = "free" if user is None else f"{user.name} is {self._action} it"
        return f"<{object.__repr__(self)[1:-1]} [{state}]>"

    def __enter__(self) -> None:
        """Go in.

        Raises:
            BusyResourceError: somebody is inside, perhaps the caller itself; the message says who.
        """
        me = _User(who_by_name())
        inside = self._inside.setdefault(None, me)  # atomic: one of two is first
        if inside is not me:
            raise BusyResourceError(
                f"{inside.name} is already {self._action} this resource; {me.name} must wait for that to end, "
                "for example with a polyloop.Lock"
            )

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._inside[None]
