"""Servers that start, serve clients of all sorts, and stop at a random moment: no request is lost."""

import random
import threading
import time
from typing import Any

import pytest
from tests.helpers import until
from tests.serve import apps
from tests.serve.apps import routed
from tests.serve.test_aiohttp import make as make_aiohttp
from tests.serve.test_drain import Asker
from tests.serve.web import HTTP, PATIENCE, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from polyloop.serve import serve_aiohttp
from polyloop.testing import TestThread

PARSERS = [one if isinstance(one, str) else "auto" for one in HTTP]


def talk(port: int, ready: threading.Event) -> int | None:
    """A WebSocket that talks until the server ends it; the code that it says so with."""
    with connect(f"ws://127.0.0.1:{port}/ws", open_timeout=PATIENCE, proxy=None) as one:
        try:
            while True:
                one.send("and")
                one.recv(PATIENCE)
                ready.set()
        except ConnectionClosed as exc:
            return None if exc.rcvd is None else exc.rcvd.code


def live_and_die(rng: random.Random) -> int:
    """One server, from its start to its end under load; how many requests it answered."""
    loops = rng.randrange(1, 4)
    events: list[str] = []
    if rng.random() < 0.3:
        app: Any = make_aiohttp
        options: dict[str, Any] = {"run": serve_aiohttp}
        talkers = 0
    else:
        app = lambda: routed(apps.ROUTES, events)  # noqa: E731
        options = {"factory": True, "uvicorn": {"http": rng.choice(PARSERS)}}
        talkers = rng.randrange(3)
    with serving(app, loops=loops, **options) as served:
        paths = [
            rng.choice(["/", "/slow?0.01", f"/large?{rng.randrange(300_000)}"]) for _ in range(rng.randrange(1, 5))
        ]
        askers = [Asker(served.port, path, True) for path in paths]
        ready = [threading.Event() for _ in range(talkers)]
        talking = [TestThread(talk, served.port, event) for event in ready]
        until(lambda: all(one.answered for one in askers))
        assert all(event.wait(PATIENCE) for event in ready)
        threading.Event().wait(rng.random() / 20)  # the moment of the end is the point
        if rng.random() < 0.2:
            served.server.shutdown(600)
        report = served.stop()
        for one in askers:
            one.end()
        codes = [one.result() for one in talking]
    assert [one.lost for one in askers] == [[]] * len(askers)
    assert set(codes) <= {1012}
    assert report.clean, report
    assert len(events) in (0, 2 * loops)
    return report.requests


def many_lives(rng: random.Random, seconds: float) -> None:
    end = time.monotonic() + seconds
    lives = requests = 0
    while lives == 0 or time.monotonic() < end:
        requests += live_and_die(rng)
        lives += 1
    print(f"{lives} servers answered {requests} requests")


def test_no_request_is_lost_at_any_moment(rng: random.Random, seconds: float) -> None:
    """A second of it."""
    many_lives(rng, seconds)


@pytest.mark.stress
def test_no_request_is_lost_at_any_moment_for_long(rng: random.Random, seconds: float) -> None:
    """The same for as long as asked."""
    many_lives(rng, seconds)
