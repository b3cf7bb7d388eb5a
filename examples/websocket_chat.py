"""A chat over WebSockets on all loops: who writes on one loop is read on every other.

    polyloop serve websocket_chat:app --port 8000      # to serve it
    python websocket_chat.py                           # to see some people chat

The room is a broadcast channel: one sender for everybody, and a receiver for each person. It works between any loops,
so nobody needs to know on which loop somebody else is.
"""

import asyncio
from contextlib import suppress

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect

import polyloop
from polyloop.queues import BroadcastReceiver, Lagged, broadcast

room, _ = broadcast[str](1000)  # a person who is 1000 lines behind misses the oldest


async def chat(person: WebSocket) -> None:
    """One person's connection, on whatever loop it is."""
    lines = room.subscribe()
    await person.accept()
    reading = asyncio.create_task(show(person, lines))
    try:
        async for line in person.iter_text():
            room.send(f"{person.path_params['name']}: {line}")
    finally:
        reading.cancel()
        lines.close()


async def show(person: WebSocket, lines: BroadcastReceiver[str]) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            try:
                await person.send_text(await lines.receive())
            except Lagged as gap:
                await person.send_text(f"({gap.missed} lines missed)")


app = Starlette(routes=[WebSocketRoute("/chat/{name}", chat)])


async def read(person: ClientConnection, count: int) -> list[str]:
    return [str(await person.recv()) for _ in range(count)]


async def try_it() -> None:
    names = ["ada", "grace", "edsger", "barbara"]
    async with polyloop.ASGIServer(app, port=0, access_log=False) as server:
        base = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/chat"
        people = [await connect(f"{base}/{name}") for name in names]
        loops = sum(load.connections > 0 for load in server.loads)
        for person in people:
            await person.send("hello")
        heard = await asyncio.gather(*[read(person, len(names)) for person in people])
        for person in people:
            await person.close()
    assert all(sorted(lines) == sorted(f"{name}: hello" for name in names) for lines in heard)
    print(f"{len(names)} people on {loops} loops have read {sum(map(len, heard))} lines")


if __name__ == "__main__":
    polyloop.run(try_it(), loops=2)
