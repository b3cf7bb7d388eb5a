"""A loop's inbox: any thread posts a callable, the loop's thread runs it.

Theory. Two deques, ``items`` and ``tokens``. A consumer that is about to sleep puts one token into ``tokens``; a
poster that finds a token pops it and wakes the consumer. Whoever pops the token owes the wake, so there is one
system call per sleep, none while the consumer is busy.

Why no wake-up is lost. The consumer appends the token and *then* looks at ``items`` a last time; the poster
appends the item and *then* looks at ``tokens``. In every order of these four steps the consumer sees the item or
the poster sees the token. It relies on ``deque.append``, ``pop`` and ``popleft`` being critical sections and on the
length of a deque being a sequentially consistent load (CPython 3.13 ``_collectionsmodule.c``); with the GIL it holds
trivially. Stress: ``tests/_core/test_mailbox_stress.py``.

Why nothing is lost at close. The closer sets ``_closed``, leaves a token for good and *then* empties ``items``; the poster
appends and *then* looks at ``tokens``. An append that comes after the closer's last ``popleft`` in the deque's own order
therefore sees the token, reads ``_closed`` as true, and empties the deque itself. Every item is popped by one thread.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

type Posted = tuple[Callable[..., object], tuple[Any, ...]]


class Mailbox:
    """Callables posted to one loop, and the tokens that say whether it sleeps.

    Args:
        wake: Ends the consumer's sleep. Called by a poster that popped a token; any thread; must not raise.
        report: Gets an exception that escaped a posted callable, and the callable. Consumer thread.
        late: Gets each callable that was still queued at close or came after it. Any thread; must not raise.
    """

    __slots__ = ("_closed", "_late", "_report", "_wake", "items", "post", "tokens")

    def __init__(
        self,
        wake: Callable[[], object],
        report: Callable[[BaseException, Callable[..., object]], object],
        late: Callable[[Callable[..., object], tuple[Any, ...]], object],
    ) -> None:
        self.items: deque[Posted] = deque()  # appended by any thread, popped by the consumer
        self.tokens: deque[None] = deque()  # appended by the consumer, popped by whoever wakes it
        self.post = _poster(self.items.append, self.tokens, self.signal)
        self._wake = wake
        self._report = report
        self._late = late
        self._closed = False  # set once, at the end

    def signal(self) -> bool:
        """Wake the consumer if it sleeps and nobody else has woken it yet; say whether this call did. Any thread."""
        if not self._closed:
            try:
                self.tokens.pop()  # atomic: one token has one popper
            except IndexError:
                return False
            if not self._closed:
                self._wake()
                return True
            self.tokens.append(None)  # it was the one that close() left for good: nobody sleeps, and nobody may be woken
        self._sweep()
        return False

    def drain(self) -> None:
        """Run what is queued now; what these calls post waits for the next drain. Consumer thread only."""
        items = self.items
        for _ in range(len(items)):
            try:
                fn, args = items.popleft()
            except IndexError:  # closed by another thread, which gave this loop up
                return
            try:
                fn(*args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._report(exc, fn)

    @property
    def closed(self) -> bool:
        """Whether posts go to ``late``."""
        return self._closed

    def close(self) -> None:
        """Hand all that is queued, and all that comes later, to ``late``. Any thread, once the consumer is lost."""
        self._closed = True
        self.tokens.append(None)
        self._sweep()

    def _sweep(self) -> None:
        while True:
            try:
                fn, args = self.items.popleft()
            except IndexError:
                return
            self._late(fn, args)


def _poster(
    append: Callable[[Posted], object], tokens: deque[None], signal: Callable[[], object]
) -> Callable[..., None]:
    """Make ``Mailbox.post``: a closure, because it is the hottest function of all and attributes would double its price."""

    def post(fn: Callable[..., object], *args: Any) -> None:
        """Queue ``fn(*args)`` to run on the consumer's thread.

        Thread safety: any thread, signal handlers included. Posts of one thread run in their order. A post to a
        closed mailbox goes to ``late`` at once.
        """
        append((fn, args))
        if tokens:
            signal()

    return post
