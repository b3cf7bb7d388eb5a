"""A key-value store over TCP, on all cores: asyncio's ``start_server`` with another import.

A line is a command: ``SET key value``, ``GET key``, ``ADD key number``, ``DEL key``, ``QUIT``. Connections are spread
over all loops, and what they share is one store: a dict, behind a lock for all loops where a command reads and then
writes.
"""

import asyncio

import polyloop

CLIENTS = 40
ADDITIONS = 25


class Store:
    """Values by key, for connections on any loop."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._lock = polyloop.Lock()  # for what reads and then writes; one operation of a dict needs none

    async def do(self, command: str, *arguments: str) -> str:
        match command.upper(), arguments:
            case "SET", (key, value):
                self._values[key] = value
                return "OK"
            case "GET", (key,):
                return self._values.get(key, "NONE")
            case "ADD", (key, number):
                async with self._lock:
                    total = int(self._values.get(key, "0")) + int(number)
                    self._values[key] = str(total)
                return str(total)
            case "DEL", (key,):
                return "NONE" if self._values.pop(key, None) is None else "OK"
            case _:
                return "ERROR unknown command"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, on the loop that it was given to."""
        async for line in reader:
            words = line.decode().strip().split(maxsplit=2)
            if not words or words[0].upper() == "QUIT":
                break
            try:
                answer = await self.do(*words)
            except ValueError as exc:
                answer = f"ERROR {exc}"
            writer.write(f"{answer}\n".encode())
            await writer.drain()
        writer.close()


async def client(port: int, number: int) -> None:
    """Uses a key of its own, and adds to one that all share."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask(line: str) -> str:
        writer.write(f"{line}\n".encode())
        return (await reader.readline()).decode().strip()

    try:
        assert await ask(f"SET mine-{number} {number} apples") == "OK"
        for _ in range(ADDITIONS):
            assert int(await ask("ADD all 1")) > 0
        assert await ask(f"GET mine-{number}") == f"{number} apples"
        assert await ask(f"DEL mine-{number}") == "OK"
        assert await ask(f"GET mine-{number}") == "NONE"
        assert await ask("ADD all x") == "ERROR invalid literal for int() with base 10: 'x'"
        writer.write(b"QUIT\n")
        assert await reader.read() == b""
    finally:
        writer.close()


async def main() -> None:
    store = Store()
    async with await polyloop.start_server(store.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with polyloop.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(client(port, number))
        assert await store.do("GET", "all") == str(CLIENTS * ADDITIONS)
        each = [load.accepted for load in server.loads]
    assert sum(each) == CLIENTS
    print(f"{CLIENTS} clients, {each} of them on the {len(each)} loops, added {CLIENTS * ADDITIONS} times, none lost")


polyloop.run(main(), loops=4)
