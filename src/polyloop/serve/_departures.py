"""Word of connections that have ended, for a reader that is woken by it only while it waits for one.

Theory: that of ``_core/_mailbox``. The reader puts a token into ``_tokens`` and *then* looks at ``_gone`` a last time;
whoever adds appends and *then* looks for a token. In every order of these four steps one of the two sees the other.
"""

from collections import deque
from collections.abc import Callable


class Departures:
    """Numbers of loops, each of which has one connection fewer.

    Args:
        wake: Wakes the reader; any thread, and not more than once for each wait.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._gone: deque[int] = deque()  # appended by any thread, popped by the reader
        self._tokens: deque[None] = deque()  # appended by the reader, popped by whoever wakes it

    def add(self, index: int) -> None:
        """A connection of this loop has ended. Any thread."""
        self._gone.append(index)
        if self._tokens:
            try:
                self._tokens.pop()  # atomic: one token has one popper
            except IndexError:
                return
            self._wake()

    def take(self) -> int | None:
        """The next one, or ``None``. The reader."""
        try:
            return self._gone.popleft()
        except IndexError:
            return None

    def wait(self) -> bool:
        """Have the next one wake the reader; ``False`` if it need not wait, since there is one already. The reader."""
        if not self._tokens:
            self._tokens.append(None)
        return not self._gone

    def wait_no_more(self) -> None:
        """The next one is no longer urgent. The reader."""
        self._tokens.clear()
