"""The gate: what stands between uvicorn and the application, on one loop.

It knows which requests are in flight, answers the health endpoint, and while the server drains it has each answer end
its connection, so that a client never sends a request into one that is just being closed. It also keeps the task and
the error of the lifespan, of which uvicorn forgets the one and may not tell the other.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

type Scope = MutableMapping[str, Any]
type Message = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Message]]
type Send = Callable[[Message], Awaitable[None]]
type App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: What the health endpoint says: whether the server is ready, and more. Any thread.
type Health = Callable[[], tuple[bool, Mapping[str, object]]]

#: Whether requests that have come already wait for the answer that this ``send`` sends (pipelining).
type MoreWaiting = Callable[[Send], bool]

#: The header of an answer that is the last on its connection.
LAST_ANSWER = (b"connection", b"close")

#: How many requests a report of a hang names at most.
NAMED = 3

#: Seconds that a lifespan gets to answer that it is cancelled, or for what it does after its last word.
_LIFESPAN_GRACE = 1.0


class Gate:
    """The application of one loop, as uvicorn sees it.

    Args:
        health_path: Where the server tells of its health; ``None`` for nowhere. ``<path>/live`` answers 200 as long as
            a loop answers at all, ``<path>`` and ``<path>/ready`` 200 while new requests are welcome, else 503.

    Attributes:
        in_flight: What each task answers; changed by the loop's thread, read by anyone.
        draining: Whether answers end their connections; the loop's thread.
        lifespan_error: What the lifespan raised after it had begun, which is more than not to know of lifespans.
    """

    def __init__(self, app: App, health_path: str | None, health: Health, more_waiting: MoreWaiting) -> None:
        self.in_flight: dict[asyncio.Task[Any], Scope] = {}
        self.draining = False
        self.lifespan_error: BaseException | None = None
        self._lifespan: asyncio.Task[Any] | None = None
        self._app = app
        self._health_path = health_path
        self._health = health
        self._more_waiting = more_waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; ASGI."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(scope, receive, send)
            return
        if kind == "http":
            if self.draining:
                send = self._ending(send)
            if (what := self._health_question(scope)) is not None:
                await self._tell(what, send)
                return
        task = asyncio.current_task()
        assert task is not None
        self.in_flight[task] = scope
        try:
            await self._app(scope, receive, send)
        finally:
            del self.in_flight[task]

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's lifespan."""
        begun = False

        async def noting() -> Message:
            nonlocal begun
            message = await receive()
            begun = True
            return message

        self._lifespan = asyncio.current_task()
        try:
            await self._app(scope, noting, send)
        except BaseException as exc:
            if begun:
                self.lifespan_error = exc
            raise

    async def lifespan_ended(self) -> None:
        """Wait for what the lifespan does after its last word; not for long."""
        if self._lifespan is not None:
            await asyncio.wait([self._lifespan], timeout=_LIFESPAN_GRACE)

    async def cancel_lifespan(self) -> None:
        """Cancel the lifespan, if it has not ended: its start or its end was given up."""
        if self._lifespan is not None and not self._lifespan.done():
            self._lifespan.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # of our caller: it is cancelled anyway
                await self.lifespan_ended()

    def _ending(self, send: Send) -> Send:
        """A ``send`` whose answer says that it is the last on its connection, unless more requests wait there."""

        async def ending(message: Message) -> None:
            if message["type"] == "http.response.start" and not self._more_waiting(send):
                message = {**message, "headers": [*message.get("headers", ()), LAST_ANSWER]}
            await send(message)

        return ending

    def _health_question(self, scope: Scope) -> str | None:
        """What a request asks of the health endpoint; ``None`` if it is for the application."""
        if self._health_path is None:
            return None
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # which uvicorn has put in front of it
        if not path.startswith(self._health_path):
            return None
        what: str = path[len(self._health_path) :]
        return what if what in ("", "/ready", "/live") else None

    async def _tell(self, what: str, send: Send) -> None:
        ready, details = self._health()
        body = json.dumps(details).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        status = 200 if ready or what == "/live" else 503
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def busy_with(self, task: "asyncio.Task[Any] | None") -> str:
        """Say which request ``task`` answers, or, if that is not known, which are in flight. Any thread."""
        if task is not None and (scope := self.in_flight.get(task)) is not None:
            return f"which answers {describe(scope)}"
        scopes = list(self.in_flight.copy().values())
        if not scopes:
            return "and no request is in flight"
        more = f" and {len(scopes) - NAMED} more" if len(scopes) > NAMED else ""
        return f"while these are in flight: {', '.join(map(describe, scopes[:NAMED]))}{more}"


def describe(scope: Scope) -> str:
    """A request in words."""
    client = scope.get("client")
    whom = f" for {client[0]}:{client[1]}" if client else ""
    if not whom.isprintable():  # the host is a header's text where proxies are trusted
        whom = whom.encode("unicode_escape").decode("ascii")
    return f"{scope.get('method', 'websocket')} {scope['path']!r}{whom}"
