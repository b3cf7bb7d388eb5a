"""Tasks that migrate, beside asyncio's, which stay on one loop, and tonio's, which migrate on a runtime of its own.

tonio is measured in processes of its own (``_tonio``), each of which warms up and prints one figure a round; so is all
of skewed load (``_tailed``) and of memory. Whoever else takes turns in this one.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import polyloop
from benchmarks import _tonio
from benchmarks._measure import Report, in_turn, measured_alone, medians, peak_bytes, rss_bytes
from benchmarks._tailed import dealt_blindly, sizes
from benchmarks.offload import steps_for
from polyloop.queues import OneshotSender, oneshot

#: Tasks of one group, and groups one after the other.
TASKS, BATCHES = 1000, 20

#: Tasks that give way in turn, and how often each does.
STEPPERS, STEPS = 10, 100_000

LAPS = 20_000

#: Heavy-tailed tasks: some two seconds of work.
TAILED = 200

#: Tasks that are alive at once.
ALIVE = 1_000_000

#: What a rival measures in a loop, in its own unit.
type Main = Coroutine[Any, Any, float]


def _tonio_is_there(report: Report) -> bool:
    """Whether tonio can be measured; if not, the report says so."""
    if missing := _tonio.is_missing():
        report.notes.append("left out: tonio, which is not installed")
    return not missing


def _tonios(
    what: str, numbers: tuple[int, ...], threads: tuple[int, ...] = (1, 2), name: str = "tonio"
) -> dict[str, Callable[[], float]]:
    """tonio on so many threads."""

    def measure(count: int) -> float:
        return _tonio.measured(what, count, *numbers)[0]

    return {_on_tonio(count, name): partial(measure, count) for count in threads}


def _on_tonio(threads: int, what: str = "tonio") -> str:
    return f"{what}, {_counted(threads, 'thread')}"


def _ours(loops: int, what: str = "polyloop") -> str:
    return f"{what}, {_counted(loops, 'loop')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


async def _noop() -> None:
    return None


# Spawn and join


async def _gathered() -> None:
    await asyncio.gather(*(_noop() for _ in range(TASKS)))


async def _grouped() -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(_noop())


async def _migrating() -> None:
    async with polyloop.TaskGroup(migratable=True) as group:
        for _ in range(TASKS):
            group.create_task(_noop())


async def _gathering() -> None:
    await polyloop.gather(*(_noop() for _ in range(TASKS)))


async def _staying() -> None:
    worker = polyloop.current_runtime().workers[0]
    async with polyloop.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(_noop(), migratable=True, on=worker)


async def _each(batch: Callable[[], Awaitable[None]]) -> float:
    """Microseconds a task."""
    await batch()
    began = time.perf_counter()
    for _ in range(BATCHES):
        await batch()
    return (time.perf_counter() - began) / (BATCHES * TASKS) * 1e6


def spawn(rounds: int) -> Report:
    """Tasks that do nothing, spawned and joined: microseconds each."""
    report = Report(f"spawn and join of {TASKS:,} tasks that do nothing", "µs each")
    gather, ours, pinned = "asyncio.gather", "polyloop.gather", "polyloop, 1 loop, pinned"
    rivals: dict[str, Callable[[], float]] = {
        gather: lambda: asyncio.run(_each(_gathered)),
        "asyncio.TaskGroup": lambda: asyncio.run(_each(_grouped)),
        **{_ours(loops): partial(_run_ours, partial(_each, _migrating), loops) for loops in (1, 2)},
        **{_ours(loops, ours): partial(_run_migrating, partial(_each, _gathering), loops) for loops in (1, 2)},
        pinned: partial(_run_ours, partial(_each, _staying), 1),
    }
    if _tonio_is_there(report):
        rivals |= _tonios("spawn", (BATCHES, TASKS))
        rivals |= _tonios("spawn in a scope", (BATCHES, TASKS), name="tonio's scope")
    found = report.figures = medians(rivals, rounds)
    report.at_most("a group against asyncio.gather", found[_ours(1)] / found[gather], 0.4)
    report.at_most("gather against asyncio.gather", found[_ours(1, ours)] / found[gather], 0.4)
    if _on_tonio(1) in found:
        # Each beside what has its semantics: tonio's bare spawn takes all coroutines at once, and cancels nobody.
        report.at_most("gather against tonio, on one thread", found[_ours(1, ours)] / found[_on_tonio(1)], 3)
        scope = _on_tonio(1, "tonio's scope")
        report.at_most("a group against tonio's scope, on one thread", found[_ours(1)] / found[scope], 1)
    for what in ("polyloop", ours):
        report.at_most(f"{what}, 2 loops against 1", found[_ours(2, what)] / found[_ours(1, what)], 1.3)
    return report


def _run_ours(main: Callable[[], Main], loops: int) -> float:
    return polyloop.run(main(), loops=loops)


def _run_migrating(main: Callable[[], Main], loops: int) -> float:
    return polyloop.run(main(), loops=loops, migratable=True)


# Steps


async def _steppers(group: Any, give_way: Callable[[], Awaitable[object]]) -> float:
    """Microseconds a step of several tasks, with so many steps each."""

    async def stepper(steps: int) -> None:
        for _ in range(steps):
            await give_way()

    took = 0.0
    for steps in (max(1, STEPS // 10), STEPS):  # the first to warm up
        began = time.perf_counter()
        async with group() as tasks:
            for _ in range(STEPPERS):
                tasks.create_task(stepper(steps))
        took = time.perf_counter() - began
    return took / (STEPPERS * STEPS) * 1e6


def step(rounds: int) -> Report:
    """Tasks that do nothing but give way: microseconds a step."""
    report = Report(f"one step of {STEPPERS} tasks that give way", "µs a step")
    migrating = partial(_steppers, partial(polyloop.TaskGroup, migratable=True), polyloop.checkpoint)
    theirs = "asyncio.sleep(0)"
    rivals: dict[str, Callable[[], float]] = {
        theirs: lambda: asyncio.run(_steppers(asyncio.TaskGroup, partial(asyncio.sleep, 0))),
        **{_ours(loops): partial(_run_ours, migrating, loops) for loops in (1, 2)},
    }
    if _tonio_is_there(report):
        rivals |= _tonios("step", (STEPS, STEPPERS))
    report.figures = medians(rivals, rounds)
    report.at_most("time against asyncio", report.figures[_ours(1)] / report.figures[theirs], 0.6)
    return report


# To and fro


async def _with_queues(group: Any, make: Callable[[], Any]) -> float:
    """Microseconds a lap of two tasks, with a queue each way."""
    there, back = make(), make()

    async def ping(laps: int) -> None:
        for lap in range(laps):
            there.put_nowait(lap)
            await back.get()

    async def pong(laps: int) -> None:
        for _ in range(laps):
            back.put_nowait(await there.get())

    took = 0.0
    for laps in (max(1, LAPS // 10), LAPS):
        began = time.perf_counter()
        async with group() as tasks:
            tasks.create_task(ping(laps))
            tasks.create_task(pong(laps))
        took = time.perf_counter() - began
    return took / LAPS * 1e6


async def _with_shots(
    group: Any, make: Callable[[], tuple[Any, Any]], send: Callable[[Any, tuple[Any, Any] | None], object]
) -> float:
    """The same with new futures for each lap, of which ``make`` returns both ends: who asks sends where to answer."""

    async def ping(laps: int, there: Any) -> None:
        for _ in range(laps):
            back, answer = make()
            following, request = make()
            send(there, (back, request))
            there = following
            await answer
        send(there, None)

    async def pong(request: Any) -> None:
        while (asked := await request) is not None:
            back, request = asked
            send(back, None)

    took = 0.0
    for laps in (max(1, LAPS // 10), LAPS):
        began = time.perf_counter()
        async with group() as tasks:
            there, request = make()
            tasks.create_task(ping(laps, there))
            tasks.create_task(pong(request))
        took = time.perf_counter() - began
    return took / LAPS * 1e6


def _future() -> "tuple[asyncio.Future[Any], asyncio.Future[Any]]":
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return future, future


def ping_pong(rounds: int) -> Report:
    """Two tasks on one loop, or on one thread, that wait for each other: microseconds a lap."""
    report = Report("to and fro between two tasks on one loop", "µs a lap")
    ours = partial(polyloop.TaskGroup, migratable=True)
    queue, shot, their_queue, their_future = "polyloop.Queue", "polyloop oneshot", "asyncio.Queue", "asyncio.Future"
    rivals: dict[str, Callable[[], float]] = {
        queue: partial(_run_ours, partial(_with_queues, ours, polyloop.Queue), 1),
        their_queue: lambda: asyncio.run(_with_queues(asyncio.TaskGroup, asyncio.Queue)),
        shot: partial(_run_ours, partial(_with_shots, ours, oneshot, OneshotSender.send), 1),
        their_future: lambda: asyncio.run(_with_shots(asyncio.TaskGroup, _future, asyncio.Future.set_result)),
    }
    if _tonio_is_there(report):
        rivals |= _tonios("ping-pong", (LAPS,), (1,), "tonio's channels")
    report.figures = medians(rivals, rounds)
    report.at_most(f"{queue} against {their_queue}", report.figures[queue] / report.figures[their_queue], 1.5)
    report.at_most(f"{shot} against {their_future}", report.figures[shot] / report.figures[their_future], 1.5)
    return report


# Sizes with a heavy tail


def _makespan(way: str, per_ms: int) -> float:
    """Milliseconds of all tasks, shared out in that way (``_tailed``)."""
    return measured_alone("benchmarks._tailed", way, TAILED, per_ms)[0]


def skew(rounds: int) -> Report:
    """Heavy-tailed tasks on two cores, placed blindly: milliseconds until the last is done, against the ideal split.

    The ideal split is the same tasks, each kept where somebody wants it who knows their sizes. Beside it, for what
    tasks and loops cost at all: their parts on two bare threads, which make no tasks.
    """
    report = Report(f"{TAILED} CPU tasks whose sizes have a heavy tail, on two cores", "ms")
    per_ms = steps_for(0.001)
    names = {
        "ideal": "polyloop, migratable, dealt by size",
        "migratable": "polyloop, migratable",
        "bare": "two bare threads with one deque",
        "blindly": "polyloop, a loop per thread",
    }
    rivals: dict[str, Callable[[], float]] = {name: partial(_makespan, way, per_ms) for way, name in names.items()}
    if _tonio_is_there(report):
        rivals |= _tonios("tailed", (TAILED, per_ms), (2,))
    found = report.figures = medians(rivals, rounds)
    ours = found[names["migratable"]]
    report.at_most("migratable against the ideal split", ours / found[names["ideal"]], 1.1)
    report.at_most("migratable against two bare threads", ours / found[names["bare"]], 1.1)
    dealt = sizes(TAILED, per_ms)
    first = sum(size for size, place in zip(dealt, dealt_blindly(dealt), strict=True) if place == 0) / sum(dealt)
    share = max(first, 1 - first)
    report.notes.append(f"dealt out in turn, one loop gets {share:.0%} of the work")
    return report


# Many at once


async def park_all(group: Any, make_event: Callable[[], Any], count: int) -> tuple[float, float]:
    """Seconds to spawn, wake and join so many tasks, which are all alive at once; and bytes of memory of each."""
    event, there = make_event(), make_event()
    missing = [None] * count  # pop() is atomic, which next() of a range is not

    async def park() -> None:
        missing.pop()
        if not missing:
            there.set()
        await event.wait()

    before, began = rss_bytes(), time.perf_counter()
    async with group() as tasks:
        for _ in range(count):
            tasks.create_task(park())
        await there.wait()
        event.set()
    return time.perf_counter() - began, (peak_bytes() - before) / count


#: Runs in a process of its own: the peak is that of all that the process has ever done.
_ALIVE = """
import asyncio, functools, polyloop
from benchmarks.tasks import park_all

migrating = functools.partial(polyloop.TaskGroup, migratable=True)
if WHAT == "polyloop":
    print(*polyloop.run(park_all(migrating, polyloop.Event, COUNT), loops=2))
else:
    print(*asyncio.run(park_all(asyncio.TaskGroup, asyncio.Event, COUNT)))
"""


def _alive(what: str) -> list[float]:
    program = f"WHAT, COUNT = {what!r}, {ALIVE}\n{_ALIVE}"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def memory(rounds: int) -> Report:
    """Many tasks that all wait for one event: seconds to spawn, wake and join them, and memory of each at the peak."""
    report = Report(f"{ALIVE:,} tasks alive at once", "s, bytes a task")
    ours, theirs = _ours(2), "asyncio"
    rivals: dict[str, Callable[[], list[float]]] = {
        ours: partial(_alive, "polyloop"),
        theirs: partial(_alive, "asyncio"),
    }
    if _tonio_is_there(report):
        rivals[_on_tonio(2)] = partial(_tonio.measured, "alive", 2, ALIVE)
    for name, seen in in_turn(rivals, min(rounds, 3)).items():
        for kind, values in zip(("seconds", "bytes a task"), zip(*seen, strict=True), strict=True):
            report.figures[f"{kind}: {name}"] = statistics.median(values)
    of_each = {name: report.figures[f"bytes a task: {name}"] for name in (ours, theirs)}
    report.at_most("memory against asyncio", of_each[ours] / of_each[theirs], 1.2)
    return report
