"""Run the benchmarks: ``python -m benchmarks [NAME ...] [--rounds N] [--json FILE] [--figures FOLDER]``.

Every benchmark prints its medians, its goals and whether this run met them. The exit status is 0 also when a goal was
missed: a shared machine is no place for a timed test.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import calls, curves, http, maps, offload, pools, posts, queues, quiet, single, sync, tasks
from benchmarks._measure import Report, environment

BENCHMARKS: dict[str, Callable[[int], Report]] = {
    "post": posts.run,
    "calls": calls.batch,
    "callers": calls.callers,
    "latency": calls.one_at_a_time,
    "offload": offload.run,
    "offload-limited": offload.limited,
    "offload-places": offload.places,
    "map-cpu": maps.cpu,
    "map-calls": maps.calls,
    "map-memory": maps.memory,
    "single": single.run,
    "idle": quiet.idle,
    "busy": quiet.busy,
    "queue-throughput": queues.throughput,
    "queue-bounded": queues.bounded,
    "queue-mpmc": queues.many,
    "queue-latency": queues.latency,
    "queue-local": queues.local,
    "queue-arrival": queues.arrival,
    "sync-uncontended": sync.uncontended,
    "sync-contended": sync.contended,
    "sync-local": sync.local,
    "http": http.run,
    "pools-lending": pools.lending,
    "pools-query": pools.query,
    "pools-skew": pools.skew,
    "tasks-spawn": tasks.spawn,
    "tasks-step": tasks.step,
    "tasks-pingpong": tasks.ping_pong,
    "tasks-skew": tasks.skew,
    "tasks-memory": tasks.memory,
    "curve-tasks": curves.tasks,
    "curve-posts": curves.posts,
    "curve-memory": curves.memory,
}


def main() -> None:
    """Parse the command line and run what it names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--rounds", type=int, default=7, help="rounds whose median counts (7)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--figures", metavar="FOLDER", type=Path, help="also write tables and charts for the docs")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    print("  ".join(f"{key}={value}" for key, value in environment().items()))
    reports = {}
    for name in options.names or BENCHMARKS:
        reports[name] = BENCHMARKS[name](options.rounds)
        show(name, reports[name])
    if options.json:
        with open(options.json, "w") as file:
            found = {name: dataclasses.asdict(report) for name, report in reports.items()}
            json.dump({"environment": environment(), "benchmarks": found}, file, indent=2)
    if options.figures:
        from benchmarks import _figures

        for path in _figures.write(options.figures, reports, options.rounds):
            print(f"wrote {path}")


def show(name: str, report: Report) -> None:
    """Print one report."""
    print(f"\n{name}: {report.title} ({report.unit})")
    width = max(map(len, report.figures), default=0)
    for label, value in report.figures.items():
        print(f"  {label:<{width}}  {value:10.3f}")
    for goal in report.goals:
        sign = ">=" if goal.at_least else "<="
        print(f"  {'met   ' if goal.met else 'MISSED'}  {goal.text}: {goal.ratio:.2f} ({sign} {goal.bound:g})")
    for note in report.notes:
        print(f"  {note}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
