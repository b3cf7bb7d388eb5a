"""Locks, semaphores, events and conditions, against aiologic's; asyncio's and threading's stand beside them.

All contenders of a line take turns within one run. *Uncontended*: one task or thread, which nobody disturbs.
*Contended*: two loops or two threads, at the same object. *Local*: one loop alone, against asyncio's.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiologic

import polyloop
from benchmarks import _sync_moves as moves
from benchmarks._measure import Report, Rival, race
from benchmarks._places import LoopJob, together
from benchmarks._sync_moves import AsyncMove, EventPair, Section, SyncMove, Turns

COUNT = 20_000
COUNT_CONTENDED = 20_000
COUNT_HELD = 4000
LAPS = 2000
TASKS = 4

OURS, AIOLOGIC, ASYNCIO, THREADING = "polyloop", "aiologic", "asyncio", "threading"
ON_RUNTIME, KEPT = f"{OURS} on a Runtime", f"{OURS}, face kept"

#: aiologic's rate times this is the goal.
LOCK_GOAL, GOAL = 3.0, 1.5

#: Endings of the names of lines.
IN_TASK, IN_THREAD, BY_LOOPS, BY_THREADS = " in a task", " in a thread", ", 2 loops", ", 2 threads"
IN_LINE = f"Lock, {2 * TASKS} tasks in line"

LOCAL = (OURS, AIOLOGIC, ASYNCIO)

#: What two partners signal each other with.
PAIRS: dict[str, "_Pair"] = {"Event": EventPair, "Condition": Turns}

type _Makers = Mapping[str, Callable[..., Any]]
type _Pair = type[EventPair | Turns]


@dataclass(frozen=True, slots=True)
class Kind:
    """One primitive in all libraries: how to make it, and how to use it from a task and from a thread."""

    make: Mapping[str, Callable[..., Any]]
    task: Mapping[str, AsyncMove]
    thread: Mapping[str, SyncMove]
    goal: float | None


def _kind(
    name: str,
    theirs: Callable[..., Any],
    task: tuple[AsyncMove, AsyncMove],
    thread: tuple[SyncMove, SyncMove, SyncMove],
    goal: float | None = GOAL,
) -> Kind:
    """``task``: as polyloop and asyncio spell it, as aiologic; ``thread``: as polyloop, in two ways, as the others."""
    ours = getattr(polyloop, name)
    make = {OURS: ours, KEPT: ours, AIOLOGIC: theirs, THREADING: getattr(threading, name)}
    tasks = {OURS: task[0], AIOLOGIC: task[1]}
    if hasattr(asyncio, name):
        make[ASYNCIO] = getattr(asyncio, name)
        tasks[ASYNCIO] = task[0]
    return Kind(make, tasks, {OURS: thread[0], KEPT: thread[1], AIOLOGIC: thread[2], THREADING: thread[2]}, goal)


_ENTER = ((moves.enter, moves.enter), (moves.with_face, moves.keep_face, moves.with_))
_NOTIFY = (
    (moves.enter_and_notify, moves.enter_and_notify),
    (moves.with_face_and_notify, moves.keep_face_and_notify, moves.with_and_notify),
)
_EVENT = (
    (moves.set_wait_clear, moves.set_await_clear),
    (moves.set_block_clear_face, moves.keep_face_of_event, moves.set_block_clear),
)

KINDS: dict[str, Kind] = {
    "Lock": _kind("Lock", aiologic.Lock, *_ENTER, goal=LOCK_GOAL),
    "RLock": _kind("RLock", aiologic.RLock, *_ENTER, goal=None),
    "Semaphore": _kind("Semaphore", aiologic.Semaphore, *_ENTER),
    "Event": _kind("Event", aiologic.REvent, *_EVENT),
    "Condition": _kind("Condition", aiologic.Condition, *_NOTIFY),
}


def uncontended(rounds: int) -> Report:
    """One task or one thread that is alone with the object."""
    report = Report("uncontended: enter and leave, or set, wait and clear", "µs each")
    for name, kind in KINDS.items():
        tasks = {who: partial(_alone_on_loop, kind.make[who], move) for who, move in kind.task.items()}
        threads = {who: partial(_alone, kind.make[who], move) for who, move in kind.thread.items()}
        for place, rivals in ((IN_TASK, tasks), (IN_THREAD, threads)):
            race(report, f"{name}{place}", rivals, rounds, COUNT)
            if kind.goal is not None:
                _judge(report, f"{name}{place}", kind.goal)
    report.notes.append(f"{KEPT}: 'face = lock.sync' once; without it, 'with lock.sync' each time")
    return report


def contended(rounds: int) -> Report:
    """Two loops, or two threads, at one object."""
    report = Report(f"contended by two loops, of {TASKS} tasks or of one, or by two threads", "µs each")
    for name, make in (("Lock", KINDS["Lock"].make), ("Semaphore", _of_two(KINDS["Semaphore"].make))):
        for place, rivals_of, fight in (
            (BY_LOOPS, _on_loops, _fight_on_loops),
            (BY_THREADS, _in_threads, _fight),
        ):
            shares: dict[str, float] = {}
            race(report, f"{name}{place}", rivals_of(partial(fight, make, shares)), rounds, COUNT_CONTENDED)
            found = ", ".join(f"{who} {share:.0%}" for who, share in shares.items())
            report.notes.append(
                f"{name}{place}: entries that followed one of the other side, in the last round: {found}"
            )
        held = f"{name} held over a step{BY_LOOPS}"
        race(report, held, _on_loops(partial(_queue_up, make)), rounds, COUNT_HELD)
    for name, pair in PAIRS.items():
        make = KINDS[name].make
        race(report, f"{name}{BY_LOOPS}", _on_loops(partial(_laps_on_loops, pair, make)), rounds, LAPS)
        race(report, f"{name}{BY_THREADS}", _in_threads(partial(_laps, pair, make)), rounds, LAPS)
    for case in dict.fromkeys(figure.rpartition(": ")[0] for figure in report.figures):
        _judge(report, case, GOAL)
    report.notes.append("where hardly any took over, the sides ran one after the other, and nobody contended")
    report.notes.append("Event and Condition: a lap to and fro; Semaphore: of two permits")
    return report


def local(rounds: int) -> Report:
    """One loop alone: what it costs to be safe where nobody asks for it."""
    report = Report("within one loop", "µs each")
    for name, kind in KINDS.items():
        if ASYNCIO in kind.make:
            rivals = {who: partial(_alone_on_loop, kind.make[who], move) for who, move in kind.task.items()}
            race(report, f"{name}, alone", rivals, rounds, COUNT)
    line = partial(_queue_up, KINDS["Lock"].make, loops=1)
    race(report, IN_LINE, {who: partial(line, who) for who in LOCAL}, rounds, COUNT_HELD)
    for name, pair in PAIRS.items():
        laps = partial(_laps_on_loops, pair, KINDS[name].make, loops=1)
        race(report, f"{name}, to and fro", {who: partial(laps, who) for who in LOCAL}, rounds, LAPS)
    for case in ("Lock, alone", IN_LINE):
        ratio = report.figures[f"{case}: {OURS}"] / report.figures[f"{case}: {ASYNCIO}"]
        report.at_most(f"{case}: {OURS} against {ASYNCIO}", ratio, 1.3)
    return report


def _of_two(make: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    return {who: partial(factory, 2) for who, factory in make.items()}


def _on_loops(measure: Callable[..., float]) -> dict[str, Rival]:
    """Who can serve two loops."""
    ours = partial(measure, OURS)
    return {OURS: ours, ON_RUNTIME: partial(ours, runtime=True), AIOLOGIC: partial(measure, AIOLOGIC)}


def _in_threads(measure: Callable[..., float]) -> dict[str, Rival]:
    return {who: partial(measure, who) for who in (OURS, AIOLOGIC, THREADING)}


# One measurement each: microseconds for each time


def _alone(make: Callable[..., Any], move: SyncMove, count: int) -> float:
    return together([partial(move, make(), count)]) / count * 1e6


def _alone_on_loop(make: Callable[..., Any], move: AsyncMove, count: int) -> float:
    return together((), [[partial(move, make(), count)]]) / count * 1e6


def _fight(make: _Makers, shares: dict[str, float], who: str, count: int) -> float:
    section = Section(make[who]())
    took = together([partial(section.enter_blocking, me, count // 2) for me in (0, 1)])
    shares[who] = section.changes / count
    return took / count * 1e6


def _fight_on_loops(make: _Makers, shares: dict[str, float], who: str, count: int, *, runtime: bool = False) -> float:
    section = Section(make[who]())
    sides: list[list[LoopJob]] = [[partial(section.enter, me, count // (2 * TASKS))] * TASKS for me in (0, 1)]
    took = together((), sides, runtime=runtime)
    shares[ON_RUNTIME if runtime else who] = section.changes / count
    return took / count * 1e6


def _queue_up(make: _Makers, who: str, count: int, *, loops: int = 2, runtime: bool = False) -> float:
    one = partial(moves.enter_and_yield, make[who](), count // (2 * TASKS))
    return together((), [[one] * (2 * TASKS // loops)] * loops, runtime=runtime) / count * 1e6


def _laps(pair: _Pair, make: _Makers, who: str, count: int) -> float:
    both = pair(make[who])
    return together([partial(both.lap_blocking, me, count) for me in (0, 1)]) / count * 1e6


def _laps_on_loops(pair: _Pair, make: _Makers, who: str, count: int, *, loops: int = 2, runtime: bool = False) -> float:
    both = pair(make[who])
    lap = both.lap_awaiting if who == AIOLOGIC else both.lap
    ends: list[LoopJob] = [partial(lap, me, count) for me in (0, 1)]
    return together((), [ends] if loops == 1 else [[end] for end in ends], runtime=runtime) / count * 1e6


def _judge(report: Report, case: str, bound: float) -> None:
    """Compare what is ours with aiologic's."""
    theirs = report.figures[f"{case}: {AIOLOGIC}"]
    for name in (OURS, KEPT, ON_RUNTIME):
        if (mine := report.figures.get(f"{case}: {name}")) is not None:
            report.at_least(f"{case}: rate of {name} against {AIOLOGIC}", theirs / mine, bound)
