"""A loop's inbox: any thread posts a callable, the loop's thread runs it.

Theory. ``items`` is what was posted. ``tokens`` says whether the consumer sleeps: before it does it puts a token
there, and a poster that finds one pops it and wakes the consumer. Whoever pops the token owes the wake, so there is
one system call a sleep, and none while the consumer is busy.

Why no wake-up is lost. The consumer appends its token and *then* looks at ``items`` a last time; the poster appends its
item and *then* looks at ``tokens``. In every order of these four steps the consumer sees the item or the poster sees
the token. It relies on ``deque.append``, ``pop`` and ``popleft`` being critical sections and on the length of a deque
being a sequentially consistent load (CPython 3.13 ``_collectionsmodule.c``; the length of a list is a relaxed one).
Stress: ``tests/_core/test_mailbox_stress.py``.

A mailbox is closed when its loop will not run again. What is posted then concerns nobody, and is dropped; what must
not be dropped, tasks that wait to be started, is kept by the port itself (see ``Port.admit``).
"""

import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

type Posted = Callable[[], object]


class Mailbox:
    """Callables posted to one loop, and the tokens that say whether it sleeps.

    Args:
        wake: Ends the consumer's sleep. Called by a poster that popped a token; any thread; must not raise.
        report: Gets an exception that escaped a posted callable. Consumer thread.

    Attributes:
        post: ``post(fn, *args)`` queues ``fn(*args)`` to run on the consumer's thread. Any thread, signal handlers
            included. Posts of one thread run in their order. Without arguments it is three times as cheap: it makes
            nothing that the garbage collector would have to look at.
    """

    __slots__ = ("_report", "_wake", "closed", "items", "post", "tokens")

    def __init__(
        self,
        wake: Callable[[], object],
        report: Callable[[BaseException], object],
    ) -> None:
        self.items: deque[Posted] = deque()  # appended by any thread, popped by the consumer
        self.tokens: deque[None] = deque()  # appended by the consumer, popped by whoever wakes it
        self.closed = False  # set once, at the end
        self.post = _poster(self.items.append, self.tokens, self.signal)
        self._wake = wake
        self._report = report

    def signal(self) -> bool:
        """Wake the consumer if it sleeps and nobody else has woken it yet; say whether this call did. Any thread."""
        # All in one function: the interpreter looks for signals when a call begins and when it has returned, so a
        # KeyboardInterrupt is raised in here after the pop only, when the wake is owed. One too many does no harm.
        tokens = self.tokens
        try:
            tokens.pop()  # atomic: one token has one popper
            if self.closed:  # it is the token that close() left for good: nobody sleeps, and nobody may be woken
                tokens.append(None)
                self.items.clear()
                return False
            self._wake()
        except IndexError:
            return False
        except BaseException:
            if not self.closed:
                with contextlib.suppress(OSError):  # the interrupt came after the write, and the waker has gone since
                    self._wake()
            raise
        return True

    def drain(self) -> int:
        """Run what is queued now, and return how many; what these calls post waits for the next. Consumer thread."""
        popleft = self.items.popleft
        count = len(self.items)
        for _ in range(count):
            try:
                # In one expression: a name for the callable would be two more writes to a reference count that the
                # poster's core writes to as well, and those are most of what a post costs.
                popleft()()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                if self.closed:  # by another thread, which gave this loop up and cleared the deque
                    break
                self._report(exc)
        return count

    def close(self) -> None:
        """Drop what is queued and all that comes later. Any thread, once the consumer will not drain again."""
        self.closed = True
        self.tokens.append(None)  # for good: posters look, find the mailbox closed, and clear it
        self.items.clear()


def _poster(
    append: Callable[[Posted], object], tokens: deque[None], signal: Callable[[], object]
) -> Callable[..., None]:
    """Make ``Mailbox.post``: a closure, since it is the hottest function and attributes would double its price."""

    def post(fn: Callable[..., object], *args: Any) -> None:
        append(partial(fn, *args) if args else fn)
        if tokens:
            signal()

    return post
