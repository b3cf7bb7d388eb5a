"""Where something of a user's was made, and an error for its use on another loop."""

import contextvars
import sys
from types import FrameType
from typing import Any, Self

from polyloop._core import _prims
from polyloop._core._context import runs_a_loop
from polyloop._core._errors import ForeignLoopError
from polyloop._core._port import Port, current_port

#: Set where a resource is made: who wanted it.
made_for: contextvars.ContextVar[str] = contextvars.ContextVar("made_for", default="")

#: Modules whose frames are passed over: ours, and of clients that call us.
_NOT_THE_USERS = ("polyloop.", "aiohttp.", "asyncio.", "contextlib", "httpcore.", "httpx.", "redis.", "sqlalchemy.")


def call_site(frame: FrameType | None = None) -> str:
    """The innermost frame that is not of polyloop, asyncio or a client: file, line and function.

    Args:
        frame: Where to begin, by default at the caller; a greenlet's frames end with its own.
    """
    frame = frame or sys._getframe(1)
    while frame is not None:
        if not str(frame.f_globals.get("__name__", "")).startswith(_NOT_THE_USERS):
            code = frame.f_code
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
        frame = frame.f_back
    return ""


class Home:
    """The loop that something belongs to, and where it was made.

    Attributes:
        port: The way into that loop.
        made_at: File, line and function; empty where that is not known.
    """

    __slots__ = ("made_at", "port")

    def __init__(self, port: Port, made_at: str) -> None:
        self.port = port
        self.made_at = made_at

    @classmethod
    def of_this_loop(cls) -> Self:
        """For what is being made on the running loop."""
        return cls(current_port(), made_for.get() or call_site())

    def refuse(self, what: str, advice: str) -> ForeignLoopError:
        """The error for ``what`` being used here.

        Args:
            what: What was used, and how.
            advice: What to do instead.
        """
        made = f" (made at {self.made_at})" if self.made_at else ""
        user = name_of_this_loop()
        error = ForeignLoopError(f"{what} belongs to {self.port.name!r}{made}, and was used on {user!r}; {advice}")
        error.owner, error.user, error.made_at = self.port.name, user, self.made_at
        return error


def name_of_this_loop() -> str:
    """The name of the running loop, or of the thread where none runs."""
    if runs_a_loop():
        return current_port().name
    return f"thread {_prims.current_thread().name!r}, which runs no loop"


def guarded[C: type[Any]](cls: C, methods: tuple[str, ...], advice: str) -> C:
    """A subclass whose methods raise ``ForeignLoopError`` on another loop than that of ``adopt``.

    Args:
        methods: Names of public methods of ``cls``; those that return an awaitable refuse when they are called.
        advice: What to do instead, for the message.
    """
    members: dict[str, Any] = {"_polyloop_home": None, "__module__": cls.__module__, "__doc__": cls.__doc__}
    for name in methods:
        members[name] = _guard(getattr(cls, name), f"{cls.__qualname__}.{name}()", advice)
    make: Any = type(cls)  # a metaclass of its own, as asyncpg has
    guard: C = make(cls.__name__, (cls,), members)
    return guard


def adopt(resource: Any) -> None:
    """Bind an instance of a ``guarded`` class to the running loop."""
    resource._polyloop_home = Home.of_this_loop()


def _guard(method: Any, what: str, advice: str) -> Any:
    def checked(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        home: Home | None = self._polyloop_home
        if home is not None and not home.port.is_current():
            raise home.refuse(what, advice)
        return method(self, *args, **kwargs)

    checked.__name__ = method.__name__
    checked.__qualname__ = method.__qualname__
    checked.__doc__ = method.__doc__
    checked.__wrapped__ = method  # type: ignore[attr-defined]
    return checked
