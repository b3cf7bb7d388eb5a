"""The embedded site: a small HTTP/1.1 server with keep-alive over pages that are generated before it listens.

Run as a program of its own, by file name and with the standard library only, so that it starts fast and its time is
not the client's: ``python -I _site_server.py '{"pages": 1000, …}'``. It prints its port, then serves until standard
input closes, which also happens when whoever started it dies.
"""

import asyncio
import gc
import json
import random
import signal
import sys
import time

_SEED = 20_250_624
_SYLLABLES = ("ba", "co", "di", "fu", "ge", "hi", "jo", "ka", "lu", "me", "ni", "po", "ra", "se", "ti", "vo")
_SENTENCE = 12  # words
_SENTENCES = 6  # of a paragraph
_PARAGRAPHS = 400
_EXTRA_LINKS = 8


def make_pages(count: int, paragraphs: int) -> dict[bytes, bytes]:
    """Generate ``count`` responses by path, the same on every call.

    Page ``n`` links to ``2n + 1`` and ``2n + 2``, so that all can be reached from page 0, and to a few others.
    """
    rng = random.Random(_SEED)
    texts = _make_paragraphs(rng)
    return {
        f"/page/{n}".encode(): _response(_html(n, count, rng, rng.choices(texts, k=paragraphs))) for n in range(count)
    }


def _make_paragraphs(rng: random.Random) -> list[str]:
    words = ["".join(rng.choices(_SYLLABLES, k=1 + n % 4)) + str(n % 7) * (n % 5 == 0) for n in range(4000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]  # roughly Zipf's law, as in prose
    return [_paragraph(rng, rng.choices(words, weights, k=_SENTENCES * _SENTENCE)) for _ in range(_PARAGRAPHS)]


def _paragraph(rng: random.Random, words: list[str]) -> str:
    sentences = [words[at : at + _SENTENCE] for at in range(0, len(words), _SENTENCE)]
    for sentence in sentences:
        sentence[0] = sentence[0].capitalize()
        sentence[5] += ","
    marked = rng.choice(sentences)
    marked[8] = rng.choice((f"<em>{marked[8]}</em>", f"{marked[8]} &amp; co"))
    return f"<p class=text>{' '.join(' '.join(sentence) + '.' for sentence in sentences)}</p>\n"


def _html(number: int, count: int, rng: random.Random, paragraphs: list[str]) -> bytes:
    near = [n for n in (2 * number + 1, 2 * number + 2) if n < count]
    links = [*near, *(rng.randrange(count) for _ in range(_EXTRA_LINKS))]
    items = "".join(f'<li><a href="/page/{n}">page {n}</a></li>\n' for n in links)
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Page {number}</title></head>\n'
    return f"{head}<body><h1>Page {number}</h1>\n<ul>{items}</ul>\n{''.join(paragraphs)}</body></html>\n".encode()


def _response(body: bytes, kind: str = "text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Site:
    """What all connections share; one thread, so nothing is locked."""

    def __init__(self, pages: dict[bytes, bytes], latency: float) -> None:
        self.pages = pages
        self.latency = latency
        self.served = 0

    def answer(self, path: bytes) -> tuple[bytes, float]:
        """Return the response to ``path`` and how long to hold it back, in seconds."""
        page = self.pages.get(path)
        if page is not None:
            self.served += 1
            return page, self.latency
        if path == b"/stats":
            stats = {"served": self.served, "cpu_seconds": time.process_time()}
            return _response(json.dumps(stats).encode(), "application/json"), 0.0
        return _response(b"no such page\n", "text/plain", "404 Not Found"), 0.0


class Connection(asyncio.Protocol):
    """One client. Requests have no body; answers go out in the order of requests, as all are held back equally long."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            response, delay = self._site.answer(request.split(b" ", 2)[1])
            if delay:
                asyncio.get_running_loop().call_later(delay, self._send, response)
            else:
                self._send(response)

    def _send(self, response: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(response)


async def serve(pages: int, paragraphs: int, latency: float) -> None:
    """Serve until standard input closes."""
    site = Site(make_pages(pages, paragraphs), latency)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(site), "127.0.0.1", 0, backlog=1024)
    gc.collect()
    gc.disable()  # nothing below makes cycles, and a collection would be seen as latency
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the whole group; the client closes our input when it leaves
    asyncio.run(serve(**json.loads(sys.argv[1])))
