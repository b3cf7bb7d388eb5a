"""Which connections have waited too long: the policy, without sockets or a clock. One loop's thread."""

from collections.abc import Mapping

#: Seconds that a connection without a request, or any byte of one, is kept while the server drains: one may be on its
#: way.
IDLE_GRACE = 0.5

#: Seconds between two looks at the connections: of a server that serves, and of one that drains.
LOOK = 1.0
DRAIN_LOOK = 0.02


class Waiting[Connection]:
    """Remembers since when connections wait for their client."""

    def __init__(self) -> None:
        # For each connection: since when, and after which request, so that a new wait begins with every request.
        self._since: dict[Connection, tuple[float, object]] = {}

    def late(self, now: float, waiting: Mapping[Connection, object], patience: float) -> list[Connection]:
        """Those that have waited for ``patience`` seconds.

        Args:
            waiting: All that wait now, each with the request that it had last; the others are forgotten.
        """
        before, self._since = self._since, {}
        late: list[Connection] = []
        for connection, request in waiting.items():
            since, after = before.get(connection, (now, request))
            if after is not request:
                since = now
            self._since[connection] = (since, request)
            if now - since >= patience:
                late.append(connection)
        return late
