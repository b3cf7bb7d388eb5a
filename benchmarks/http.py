"""Web servers with the same application, on the same cores, loaded by wrk; and what they weigh afterwards.

Each server runs alone, in a process of its own that is started and stopped for each turn. wrk runs on the same machine
and is not kept to a core: with a core less the servers would have none for a second worker. It has one thread, which
takes some 10 µs for a request: 1 % of one that computes, so those figures are the servers' own; about a tenth of the
time of the others, which are therefore a little low for whatever uses both cores.

A client that keeps its connections finds out how a server spreads them. uvicorn's workers share a listening socket, and
asyncio accepts whatever waits, so one of them may take all that wrk opens at once: the other then has nothing to do.
``TWICE`` is what two processes of it can do: each has a listening socket of its own (``SO_REUSEPORT``), so that the
kernel spreads the connections. What ours are slower than those is the price of sharing one interpreter.

Where other programs use the machine too, a measurement is repeated up to three times, and the least disturbed counts.

The weight is the proportional set size of all processes of a server, from ``/proc/*/smaps_rollup``: a page that two
processes share counts half for each.
"""

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks._http_load import DISTURBED, Load, serving, wrk, wrk_missing
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
TWICE = "uvicorn twice, reuse_port"


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
    for name in SERVERS:
        if name == GRANIAN and importlib.util.find_spec("granian") is None:
            report.notes.append("granian is not installed: requirements/http.txt")
        else:
            rivals[name] = partial(_turn, name)
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


def _turn(name: str) -> Turn:
    with serving(name) as server:
        wrk(server.base + ROUTES[COMPUTES], WARM_UP, CONNECTIONS)
        loads = {route: server.load(path, SECONDS, CONNECTIONS) for route, path in ROUTES.items()}
        return Turn(loads, server.pss())


def _judge(report: Report, turns: dict[str, list[Turn]]) -> None:
    def against(case: str, ours: str, theirs: str) -> float:
        return report.figures[f"{case}: {ours}"] / report.figures[f"{case}: {theirs}"]

    report.at_least("computes: 2 loops against 1 loop", against(COMPUTES, LOOPS, ONE_LOOP), 1.7)
    for theirs in (WORKERS, TWICE):
        report.at_least(f"computes: 2 loops against {theirs}", against(COMPUTES, LOOPS, theirs), 0.95)
    report.at_most(f"memory: 2 loops against {WORKERS}", against(WEIGHT, LOOPS, WORKERS), 0.6)
    loads = [load for seen in turns.values() for turn in seen for load in turn.loads.values()]
    quiet = sum(load.others <= DISTURBED for load in loads)
    report.notes.append(f"{quiet} of {len(loads)} measurements undisturbed by other programs")
    rates = sorted(turn.loads[COMPUTES].rate for turn in turns[WORKERS])
    report.notes.append(f"{WORKERS}, computes: {rates[0]:,.0f} to {rates[-1]:,.0f}, by how many connections each took")
    report.notes.append(f"polyloop's 2 loops against {TWICE}: {_ratios(against, TWICE)}")
    if GRANIAN in turns:
        report.notes.append(f"polyloop's 2 loops against {GRANIAN}: {_ratios(against, GRANIAN)}")


def _ratios(against: Callable[[str, str, str], float], theirs: str) -> str:
    return ", ".join(f"{case} {against(case, LOOPS, theirs):.2f}" for case in (*ROUTES, WEIGHT))
