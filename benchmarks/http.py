"""Web servers with the same application, on the same cores, loaded by wrk; and what they weigh afterwards.

Each server runs alone, in a process of its own that is started and stopped for each turn. wrk runs on the same machine
and is not kept to a core: with a core less the servers would have none for a second worker. It has one thread, which
takes some 10 µs for a request: 1 % of one that computes, so those figures are the servers' own; about a tenth of the
time of the others, which are therefore a little low for whatever uses both cores.

A client that keeps its connections finds out how a server spreads them. uvicorn's workers share a listening socket, and
asyncio accepts whatever waits, so one of them may take all that wrk opens at once: the other then has nothing to do.
``TWO`` is what its processes can do: two servers, each with half of the connections.

The weight is the proportional set size of all processes of a server, from ``/proc/*/smaps_rollup``: a page that two
processes share counts half for each.
"""

import contextlib
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks._http_load import Load, serving, wrk, wrk_missing
from benchmarks._http_servers import SERVERS
from benchmarks._measure import Report, in_turn

#: Seconds of a measurement, and of the warm-up before the first one of a server.
SECONDS, WARM_UP = 3, 1

#: Connections, each of which has one request at a time.
CONNECTIONS = 16

#: Rounds at most: one takes a minute and a half.
ROUNDS = 5

COMPUTES, GREETS, RAW, WEIGHT = "computes", "greets", "greets, raw ASGI", "MiB"
ROUTES = {COMPUTES: "/api/customers/bob/orders", GREETS: "/api/hello/bob", RAW: "/raw"}

ONE_LOOP, LOOPS, WORKERS, GRANIAN = "polyloop, 1 loop", "polyloop, 2 loops", "uvicorn, 2 workers", "granian, 2 threads"
TWO = "two uvicorns, half of the clients each"

#: Name, and the servers that are behind it.
RIVALS: dict[str, tuple[str, ...]] = {**{name: (name,) for name in SERVERS}, TWO: ("uvicorn", "uvicorn")}


@dataclass(frozen=True, slots=True)
class Turn:
    """What a server did in one turn."""

    loads: dict[str, Load]
    mebibytes: float


def run(rounds: int) -> Report:
    """Requests a second, the time of an answer, and MiB."""
    report = Report(f"web servers, {CONNECTIONS} connections", "requests/s, ms, MiB")
    if missing := wrk_missing():
        report.notes.append(missing)
        return report
    rivals: dict[str, Callable[[], Turn]] = {}
    for name, servers in RIVALS.items():
        if name == GRANIAN and importlib.util.find_spec("granian") is None:
            report.notes.append("granian is not installed: requirements/http.txt")
        else:
            rivals[name] = partial(_turn, servers)
    turns = in_turn(rivals, min(rounds, ROUNDS))
    for route in ROUTES:
        for name, seen in turns.items():
            loads = [turn.loads[route] for turn in seen]
            report.figures[f"{route}: {name}"] = statistics.median(load.rate for load in loads)
            if route != RAW:
                report.figures[f"{route}, p50 ms: {name}"] = statistics.median(load.p50 for load in loads)
                report.figures[f"{route}, p99 ms: {name}"] = statistics.median(load.p99 for load in loads)
    for name, seen in turns.items():
        report.figures[f"{WEIGHT}: {name}"] = statistics.median(turn.mebibytes for turn in seen)
    _judge(report, turns)
    return report


def _turn(servers: tuple[str, ...]) -> Turn:
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(serving(name)) for name in servers]
        urls = {route: [one.base + path for one in running] for route, path in ROUTES.items()}
        wrk(urls[COMPUTES], WARM_UP, CONNECTIONS)
        loads = {route: wrk(urls[route], SECONDS, CONNECTIONS) for route in ROUTES}
        return Turn(loads, sum(one.pss() for one in running))


def _judge(report: Report, turns: dict[str, list[Turn]]) -> None:
    def against(case: str, ours: str, theirs: str) -> float:
        return report.figures[f"{case}: {ours}"] / report.figures[f"{case}: {theirs}"]

    report.at_least("computes: 2 loops against 1 loop", against(COMPUTES, LOOPS, ONE_LOOP), 1.7)
    for theirs in (WORKERS, TWO):
        report.at_least(f"computes: 2 loops against {theirs}", against(COMPUTES, LOOPS, theirs), 0.95)
    report.at_most(f"memory: 2 loops against {WORKERS}", against(WEIGHT, LOOPS, WORKERS), 0.6)
    rates = sorted(turn.loads[COMPUTES].rate for turn in turns[WORKERS])
    report.notes.append(f"{WORKERS}, computes: {rates[0]:,.0f} to {rates[-1]:,.0f}, by how many connections each took")
    if GRANIAN in turns:
        found = ", ".join(f"{route} {against(route, LOOPS, GRANIAN):.2f}" for route in (*ROUTES, WEIGHT))
        report.notes.append(f"polyloop's 2 loops against granian: {found}")
