"""Fetch many pages on all loops, at most 20 at a time over all of them, from a small site of its own.

The site runs on the main loop with asyncio's own calls; the runtime spreads the requests over all loops.
"""

import asyncio

import polyloop

PAGES = 200
LATENCY = 0.01


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one request: page N is N lines long."""
    request = await reader.readuntil(b"\r\n\r\n")
    number = int(request.split()[1].rpartition(b"/")[2])
    await asyncio.sleep(LATENCY)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"a line of text\n" * number)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def fetch(port: int, number: int, limit: polyloop.CapacityLimiter) -> int:
    """Return how many lines page ``number`` has."""
    async with limit:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /page/{number} HTTP/1.0\r\n\r\n".encode())
        response = await reader.read()
        writer.close()
        await writer.wait_closed()
    return response.count(b"a line of text\n")


async def main() -> None:
    limit = polyloop.CapacityLimiter(20)  # one limit for all loops
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        lengths = await polyloop.gather(*(fetch(port, number, limit) for number in range(PAGES)))
    assert lengths == list(range(PAGES))
    loops = len(polyloop.current_runtime().workers)
    print(f"{PAGES} pages with {sum(lengths)} lines fetched on {loops} loops")


polyloop.run(main(), loops=2)
