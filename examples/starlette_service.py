"""A Starlette service with I/O and compute, on every core.

    polyloop serve starlette_service:make_app --factory --port 8000      # to serve it
    python starlette_service.py                                         # to see it answer its own clients

Each loop has its own application and its own HTTP client (the lifespan runs once on each); what the service learns is
shared by all loops, behind a lock. `/primes` computes on the loop of its connection, beside other requests on other
loops; `/report` is too long for a loop and goes to a thread.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import polyloop

hits: dict[str, int] = {}  # shared by all loops
hits_lock = polyloop.Lock()


def primes_below(limit: int) -> int:
    """How many there are; by trial, to have something to compute."""
    return sum(all(number % divisor for divisor in range(2, math.isqrt(number) + 1)) for number in range(2, limit))


async def count(name: str) -> None:
    async with hits_lock:
        hits[name] = hits.get(name, 0) + 1


async def primes(request: Request) -> JSONResponse:
    await count("primes")
    limit = int(request.query_params["below"])
    return JSONResponse({"below": limit, "primes": primes_below(limit)})


async def report(request: Request) -> JSONResponse:
    await count("report")
    found = await polyloop.to_thread(primes_below, 5000)
    return JSONResponse({"below": 5000, "primes": found})


async def twice(request: Request) -> JSONResponse:
    """I/O: asks this very service, with the client of this loop."""
    await count("twice")
    client: httpx.AsyncClient = request.state.client
    answers = await asyncio.gather(*[client.get(str(request.url_for("primes")) + "?below=100") for _ in range(2)])
    return JSONResponse([answer.json()["primes"] for answer in answers])


def make_app() -> Starlette:
    """One application for each loop."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with httpx.AsyncClient() as client:
            yield {"client": client}

    routes = [Route("/primes", primes), Route("/report", report), Route("/twice", twice)]
    return Starlette(routes=routes, lifespan=lifespan)


async def try_it() -> None:
    async with (
        httpx.AsyncClient() as client,  # its connections go to all loops
        polyloop.ASGIServer(make_app, factory=True, port=0, access_log=False) as server,
    ):
        client.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        async def ask(path: str) -> Any:
            return (await client.get(path)).raise_for_status().json()

        questions = [*("/primes?below=1000" for _ in range(20)), "/report", "/twice"]
        answers = await asyncio.gather(*map(ask, questions))
        loads = [load.accepted for load in server.loads]
    assert all(answer["primes"] == 168 for answer in answers[:20])
    assert answers[20]["primes"] == 669
    assert answers[21] == [25, 25]
    assert hits == {"primes": 22, "report": 1, "twice": 1}
    print(f"{sum(hits.values())} requests answered; connections of each loop: {loads}")


if __name__ == "__main__":
    polyloop.run(try_it(), loops=2)
