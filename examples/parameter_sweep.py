"""A parameter sweep that runs on this machine or on a Dask cluster, unchanged.

    python parameter_sweep.py                                         # on the threads of this process
    POLYLOOP_OFFLOAD=cpu python parameter_sweep.py                    # threads without the GIL, processes with it
    POLYLOOP_OFFLOAD=tcp://scheduler:8786 python parameter_sweep.py   # on a cluster
    python parameter_sweep.py tcp://scheduler:8786                    # the same, by argument

The question: with which damping does a pushed swing come to rest soonest? (Near 2, the critical one.)
"""

import itertools
import os
import sys

import polyloop

DAMPINGS = [0.25 * step for step in range(2, 18)]
PUSHES = [0.5, 1.0, 1.5, 2.0]


def seconds_to_rest(case: tuple[float, float]) -> tuple[float, int]:
    """Simulate one case; also say which process did it."""
    damping, push = case
    place, speed, step = 0.0, push, 0.005
    last_moved = 0
    for tick in range(8000):
        speed += (-place - damping * speed) * step
        place += speed * step
        if abs(place) > 0.01 * push:
            last_moved = tick
    return last_moved * step, os.getpid()


async def main(on: str | None) -> None:
    cases = list(itertools.product(DAMPINGS, PUSHES))
    rests: dict[float, list[float]] = {}
    processes: set[int] = set()
    async with polyloop.map(seconds_to_rest, cases, on=on) as results:
        finished = zip(cases, [result async for result in results], strict=True)
    for (damping, _), (seconds, process) in finished:
        rests.setdefault(damping, []).append(seconds)
        processes.add(process)

    assert all(max(same) == min(same) for same in rests.values())  # how hard the push is makes no difference
    best = min(rests, key=lambda damping: rests[damping][0])
    assert abs(best - 2) <= 0.5
    print(f"{len(cases)} cases: at rest soonest, after {rests[best][0]:.2f} s, with damping {best}")
    print("in this process" if processes == {os.getpid()} else f"in {len(processes)} other process(es)")


if __name__ == "__main__":  # worker processes import this file
    polyloop.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
