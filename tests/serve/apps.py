"""ASGI applications that the tests serve; also by name, in processes of their own."""

import asyncio
import contextlib
import gc
import json
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

type Scope = MutableMapping[str, Any]
type Message = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Message]]
type Send = Callable[[Message], Awaitable[None]]
type App = Callable[[Scope, Receive, Send], Awaitable[None]]
type Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


async def respond(send: Send, body: bytes | str, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole answer."""
    data = body.encode() if isinstance(body, str) else body
    length = (b"content-length", b"%d" % len(data))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": data})


async def read_body(receive: Receive) -> bytes:
    """Read the whole body of a request."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client has gone")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    """Says where it runs."""
    facts = {"thread": threading.current_thread().name, "state": {k: str(v) for k, v in scope["state"].items()}}
    await respond(send, json.dumps(facts | {"client": scope["client"], "scheme": scope["scheme"]}))


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """The shortest answer."""
    await respond(send, b"hello")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends back what comes, as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


async def size(scope: Scope, receive: Receive, send: Send) -> None:
    """Says how long the body is."""
    await respond(send, str(len(await read_body(receive))))


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    """Takes as many seconds as the query says."""
    await asyncio.sleep(float(scope["query_string"] or b"0.1"))
    await respond(send, b"slow")


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """As many bytes as the query says, in pieces of 64 KiB."""
    left = int(scope["query_string"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % left)]})
    while left:
        piece = min(left, 65536)
        left -= piece
        await send({"type": "http.response.body", "body": b"x" * piece, "more_body": left > 0})


async def facts(scope: Scope, receive: Receive, send: Send) -> None:
    """Says how many tasks this loop has, after a look for garbage."""
    gc.collect()
    await respond(send, json.dumps([threading.current_thread().name, len(asyncio.all_tasks())]))


async def persist(scope: Scope, receive: Receive, send: Send) -> None:
    """Writes its body into the file of the environment, a line each, before it answers."""
    line = await read_body(receive)
    fd = os.open(os.environ["APP_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line + b"\n")
    finally:
        os.close(fd)
    await respond(send, line)


async def block(scope: Scope, receive: Receive, send: Send) -> None:
    """Blocks its loop for good."""
    threading.Event().wait()


async def chat(scope: Scope, receive: Receive, send: Send) -> None:
    """A WebSocket that sends back what comes."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        with contextlib.suppress(OSError):  # the client has just gone: uvicorn's ClientDisconnected is one
            await send({"type": "websocket.send", "text": message.get("text")})


ROUTES: dict[str, Handler] = {
    "/who": who,
    "/": hello,
    "/echo": echo,
    "/size": size,
    "/slow": slow,
    "/large": large,
    "/persist": persist,
    "/facts": facts,
    "/block": block,
    "/ws": chat,
}


def routed(routes: Mapping[str, Handler], events: list[str] | None = None, state: dict[str, Any] | None = None) -> App:
    """An application with these routes and a lifespan, which notes its steps in ``events``."""

    def note(event: str) -> None:
        if events is not None:
            events.append(f"{event} {threading.current_thread().name}")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await routes[scope["path"]](scope, receive, send)
            return
        await receive()
        note("up")
        scope["state"].update(state or {}, home=threading.current_thread().name)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        note("down")
        await send({"type": "lifespan.shutdown.complete"})

    return app


def make() -> App:
    """All of the routes above; writes ``up`` and ``down`` into the file LIFESPAN_FILE, if the environment names one."""
    events = _FileLines(os.environ["LIFESPAN_FILE"]) if "LIFESPAN_FILE" in os.environ else None
    return routed(ROUTES, events)


app = routed(ROUTES)


class _FileLines(list[str]):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def append(self, line: str) -> None:
        with open(self._path, "a") as file:
            file.write(line + "\n")
