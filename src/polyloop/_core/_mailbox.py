"""A loop's inbox: any thread posts a callable, the loop's thread runs it.

Theory. ``items`` is what was posted. ``tokens`` says whether the consumer sleeps: before it does it puts a token
there, and a poster that finds one pops it and wakes the consumer. Whoever pops the token owes the wake, so there is
one system call a sleep, and none while the consumer is busy.

Why no wake-up is lost. The consumer appends its token and *then* copies ``items``; the poster appends its item and
*then* looks at ``tokens``. Appending to a list and copying it are critical sections of that list, which orders them:
if the append comes first, the copy has the item; if the copy comes first, the poster sees everything the consumer did
before it, the token included. (A mere ``len(items)`` would not do for this last look: it is a relaxed load on
free-threaded builds.) Stress: ``tests/_core/test_mailbox_stress.py``.

Why nothing is taken twice or skipped. Posters only append, at the end; the consumer copies and then deletes as many
from the front as it copied. Taking a batch costs two locked operations, whatever its size.

A mailbox is closed when its loop will not run again. What is posted then concerns nobody, and is dropped; what must
not be dropped, tasks that wait to be started, is kept by the port itself (see ``Port.admit``).
"""

from collections import deque
from collections.abc import Callable
from typing import Any

#: What is queued: a callable, or a callable and its arguments. The callable alone where there are none: a tuple for
#: each post is something for the garbage collector to look at, which triples the price of a post.
type Posted = Callable[[], object] | tuple[Callable[..., object], tuple[Any, ...]]


class Mailbox:
    """Callables posted to one loop, and the tokens that say whether it sleeps.

    Args:
        wake: Ends the consumer's sleep. Called by a poster that popped a token; any thread; must not raise.
        report: Gets an exception that escaped a posted callable, and the callable. Consumer thread.

    Attributes:
        post: ``post(fn, *args)`` queues ``fn(*args)`` to run on the consumer's thread. Any thread, signal handlers
            included. Posts of one thread run in their order.
    """

    __slots__ = ("_report", "_wake", "closed", "items", "post", "tokens")

    def __init__(
        self,
        wake: Callable[[], object],
        report: Callable[[BaseException, Callable[..., object]], object],
    ) -> None:
        self.items: list[Posted] = []  # appended by any thread, all else by the consumer
        self.tokens: deque[None] = deque()  # appended by the consumer, popped by whoever wakes it
        self.closed = False  # set once, at the end
        self.post = _poster(self.items.append, self.tokens, self.signal)
        self._wake = wake
        self._report = report

    def signal(self) -> bool:
        """Wake the consumer if it sleeps and nobody else has woken it yet; say whether this call did. Any thread."""
        try:
            self.tokens.pop()  # atomic: one token has one popper
        except IndexError:
            return False
        if self.closed:  # it is the token that close() left for good: nobody sleeps, and nobody may be woken
            self.tokens.append(None)
            self.items.clear()
            return False
        self._wake()
        return True

    def drain(self) -> None:
        """Run what is queued now; what these calls post waits for the next drain. Consumer thread only."""
        items = self.items
        batch = items[:]
        del items[: len(batch)]
        for done, item in enumerate(batch, 1):
            try:
                if isinstance(item, tuple):
                    item[0](*item[1])
                else:
                    item()
            except (SystemExit, KeyboardInterrupt):
                items[:0] = batch[done:]  # these two leave the loop, which may go on later
                raise
            except BaseException as exc:
                self._report(exc, item[0] if isinstance(item, tuple) else item)

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
        append((fn, args) if args else fn)
        if tokens:
            signal()

    return post
