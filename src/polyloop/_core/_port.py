"""A port: how any thread reaches one loop, and what polyloop keeps running there.

A ``Worker`` is the port of a loop that the runtime owns. A ``GuestPort`` is the port of a loop that somebody else
runs: ``asyncio.run``, Jupyter, pytest, uvloop in its own thread. Handles, waiters and task groups know ports only.
"""

import asyncio
import contextlib
import contextvars
import logging
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from polyloop._core import _prims
from polyloop._core._context import here
from polyloop._core._errors import RuntimeClosedError, copy_exception
from polyloop._core._mailbox import Mailbox

if TYPE_CHECKING:
    from polyloop._core._crew import Crew, Member
    from polyloop._core._handle import TaskHandle

logger = logging.getLogger("polyloop")

#: When the timer that waits for a guest loop's close would be called, in seconds: ten years.
_NEVER = 10 * 365 * 24 * 3600.0


class Port:
    """The way into one loop. ``post`` is for any thread, everything else for the loop's own thread.

    Attributes:
        name: Shown in logs, errors and ``repr``.
        loop: The loop; used by other threads for nothing but its identity.
        ident: Identity of the thread that runs the loop.
        live: Handles of the tasks that run here and are not done. Owner thread only; it is also the strong
            reference that keeps them alive.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop: asyncio.AbstractEventLoop
        self.ident = 0
        self.live: set[TaskHandle[Any]] = set()
        self.mailbox = Mailbox(self._wake, self._report)
        self.post = self.mailbox.post
        # Tasks placed on this very loop, in the order they came: appended by any thread, popped by whoever starts or
        # refuses them. For each there is one post of _start_next.
        self.pinned: deque[TaskHandle[Any]] = deque()
        self._starter = self._start_next  # bound once: a bound method for each post would be garbage for the collector
        self._refusal: BaseException | None = None  # why nothing starts here any more; set before the last sweep
        self._mourners: deque[Callable[[], object]] = deque()  # told of the end; each popped by whoever calls it
        # For callbacks of ours that need no variables: entered by this thread only. A shared one would raise
        # "cannot enter context" when two threads enter it at once.
        self.context = contextvars.Context()
        # Waiters that somebody wanted to wake, or that were closed, when the loop had ended: what came first. Single
        # operations of any thread.
        self.fates: dict[object, str] = {}
        # Whether tasks here are asyncio.Task, made as the loop itself would: no task factory, no create_task of its
        # own.
        self.plain_tasks = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    stealing = False  # whether tasks that wait here may be taken by another
    silent = False  # whether the loop may be closed without a word to anybody
    crew: "Crew | None" = None  # of a worker: those with whom it shares migratable tasks
    crew_member: "Member"
    stepping = False  # whether a migratable task may be running here, so that its timers count. Owner thread

    def admit(self, handle: "TaskHandle[Any]", stealable: bool) -> None:
        """Queue a handle to be started on this loop. Any thread."""
        handle._port = self
        self.pinned.append(handle)
        self.post(self._starter)
        if self._refusal is not None:  # read after the append, and set before the sweep: one of the two sees the other
            self._refuse_pinned()

    def _start_next(self) -> None:
        try:
            handle = self.pinned.popleft()
        except IndexError:  # refused meanwhile
            return
        if self._refusal is not None:
            self._refuse(handle)
        else:
            handle._start(self)

    def _refuse_pinned(self) -> None:
        """Complete what waits to be started here. Any thread that finds this port refusing."""
        while True:
            try:
                handle = self.pinned.popleft()
            except IndexError:
                return
            self._refuse(handle)

    def _refuse(self, handle: "TaskHandle[Any]") -> None:
        """Complete a handle that nobody will start. Any thread that popped it."""
        refusal = self._refusal
        assert refusal is not None
        handle._refuse(copy_exception(refusal))

    def when_ended(self, tell: Callable[[], object]) -> None:
        """Call ``tell`` once when nothing will run on this loop any more; at once if it has ended already.

        Args:
            tell: Called on any thread, finalisers included, so it waits for nothing and takes no lock that it may
                interrupt. Must not raise.
        Thread safety: any thread.
        """
        self._mourners.append(tell)
        if self.mailbox.closed:  # read after the append, and set before the calls: one of the two sees the other
            self._tell_mourners()

    def forget(self, tell: Callable[[], object]) -> None:
        """Undo ``when_ended``. Any thread."""
        with contextlib.suppress(ValueError):
            self._mourners.remove(tell)

    def close_mailbox(self) -> None:
        """Drop what is posted from now on, and tell those who wanted to know. Any thread, once the loop is lost."""
        self.mailbox.close()
        self._tell_mourners()

    def _tell_mourners(self) -> None:
        while True:
            try:
                tell = self._mourners.popleft()
            except IndexError:
                return
            tell()

    def is_current(self) -> bool:
        """Whether the caller runs on this loop's thread."""
        return self.ident == _prims.get_ident()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take over ``loop``, on the thread that runs it."""
        self.loop = loop
        self.ident = _prims.get_ident()
        here.port = self

    def new_task[T](
        self, coro: Coroutine[Any, Any, T], name: str | None, context: contextvars.Context | None
    ) -> "asyncio.Task[T]":
        """Create a task on this loop, through its task factory if it has one. Owner thread."""
        loop = self.loop
        if context is None:
            return loop.create_task(coro, name=name)
        return loop.create_task(coro, name=name, context=context)

    def call_later(self, delay: float, fn: Callable[[], object]) -> asyncio.TimerHandle:
        """Set a timer of polyloop's own, for which no migratable task has to stay (see ``_loop``). Owner thread."""
        stepping, self.stepping = self.stepping, False
        try:
            return self.loop.call_later(delay, fn, context=self.context)
        finally:
            self.stepping = stepping

    def _wake(self) -> None:
        """End the loop's sleep; the caller popped the mailbox's token. Any thread; must not raise."""
        raise NotImplementedError

    def _report(self, exc: BaseException) -> None:
        message = f"polyloop: a callable posted to {self!r} raised"
        self.loop.call_exception_handler({"message": message, "exception": exc})


class GuestPort(Port):
    """The port of a loop that polyloop does not own: one coalesced ``call_soon_threadsafe`` per batch."""

    # asyncio's tells by what it drops (_AtClose); but what another thread drops may be freed much later.
    silent = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(f"loop of thread {_prims.current_thread().name!r}")
        self.bind(loop)
        self.mailbox.tokens.append(None)  # a token stands for "no drain is scheduled"
        loop.call_later(_NEVER, _AtClose(self), context=self.context)
        self._drains = self._drain if isinstance(loop, asyncio.BaseEventLoop) else None

    def is_current(self) -> bool:
        """Whether the caller runs on this loop; its owner may run it on another thread each time."""
        return asyncio._get_running_loop() is self.loop

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            # A drain with a finaliser is one that other loops need (see _Drain). Without need it would do harm: it is
            # dropped on this thread as a rule, and an interrupt that arrives in a finaliser is lost.
            self.loop.call_soon_threadsafe(self._drains or _Drain(self), context=self.context)
        # A loop that is being closed says so first, and then drops what it has not run. So either it has dropped the
        # drain, which tells (_Drain, or the _AtClose beside it), or the drain came after that and this look tells.
        if self.loop.is_closed():
            self._lost()

    def _lost(self) -> None:
        """The loop was closed by its owner: nobody there waits, and nothing there ends any more. Any thread."""
        refusal = RuntimeClosedError(f"the {self.name} was closed before the task could start or end there")
        self._refusal = refusal
        self.close_mailbox()
        self._refuse_pinned()
        while True:
            try:
                handle = self.live.pop()  # atomic: whoever takes a handle out of live completes it
            except KeyError:
                return
            handle._fail(copy_exception(refusal))

    def _drain(self) -> None:
        here.port = self  # another loop may have had this thread meanwhile
        self.ident = _prims.get_ident()  # or this loop another thread
        self.mailbox.tokens.append(None)  # before the drain: a post from now on schedules the next one
        self.mailbox.drain()


class _AtClose:
    """A callable that waits in a guest loop. One that is closed drops what it has not run, and so tells.

    (asyncio's own and uvloop do. rloop 0.2 keeps its timers; there, the next post tells.) It does not keep the port
    alive: whoever waits for a handle does.
    """

    __slots__ = ("_port",)

    def __init__(self, port: GuestPort) -> None:
        self._port = weakref.ref(port)

    def __call__(self) -> None:
        """Ten years have passed."""

    def __del__(self) -> None:
        port = self._port()
        if port is not None and port.loop.is_closed():
            port._lost()


class _Drain(_AtClose):
    """One scheduled drain of a loop that is not asyncio's own: rloop keeps its timers, and so its ``_AtClose``."""

    __slots__ = ("_drain",)

    def __init__(self, port: GuestPort) -> None:
        super().__init__(port)
        self._drain = port._drain

    def __call__(self) -> None:
        self._drain()


class _Nowhere(Port):
    """Where a handle is that has not been placed: what is posted there is dropped."""

    def __init__(self) -> None:
        super().__init__("no loop")
        self.mailbox.close()


NOWHERE: Port = _Nowhere()


def current_port() -> Port:
    """The port of the loop that runs on the calling thread, made at the first call for a loop not of ours.

    Raises:
        RuntimeError: no loop runs on this thread (the error of ``asyncio.get_running_loop``).
    """
    loop = asyncio.get_running_loop()
    port = here.port
    if port is None or port.loop is not loop:
        port = here.port = _guest_port(loop)
    return port


def _guest_port(loop: asyncio.AbstractEventLoop) -> Port:
    """The one port of a loop not of ours on this thread: of two, each would take the other's handles for foreign."""
    for port in here.guests:
        if port.loop is loop:
            return port
    port = GuestPort(loop)
    here.guests = (*[other for other in here.guests if not other.loop.is_closed()], port)
    return port
