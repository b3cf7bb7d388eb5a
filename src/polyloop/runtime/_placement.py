"""Placement: which worker a new task goes to. Pure policies, called on the thread that spawns.

A policy reads ``worker.load`` and ``worker.alive``, which are snapshots, and keeps what state it needs itself. A task
whose worker was asked for (by name, by key, "here") is never stolen; one that a policy placed may be.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, Protocol, cast

from polyloop._core._worker import Worker

#: Workers looked at per choice on a large pool. Two random choices already bring the longest queue from log n to
#: log log n (Mitzenmacher, "The Power of Two Choices", 2001); a few more cost little.
_CANDIDATES = 8


class Placement(Protocol):
    """A placement policy."""

    def choose(self, workers: Sequence[Worker], here: Worker | None) -> Worker:
        """Pick the worker for a new task.

        Args:
            workers: The workers that take tasks, never empty.
            here: The worker that the caller runs on, if it runs on one of this runtime.
        Returns:
            One of ``workers``.
        Thread safety: called from any thread, several at once; must not block.
        """
        ...


class LeastLoaded:
    """The worker with the fewest tasks; among equals they take turns. On a large pool: the best of eight."""

    def __init__(self) -> None:
        self._turn = itertools.count()  # next() is atomic

    def choose(self, workers: Sequence[Worker], here: Worker | None) -> Worker:
        """The one with the smallest load."""
        count = len(workers)
        first = next(self._turn) % count
        best = workers[first]
        least = best.load
        for step in range(1, min(count, _CANDIDATES)):
            if not least:
                break
            worker = workers[(first + step) % count]
            load = worker.load
            if load < least:
                best, least = worker, load
        return best


class RoundRobin:
    """Each worker in turn."""

    def __init__(self) -> None:
        self._turn = itertools.count()  # next() is atomic

    def choose(self, workers: Sequence[Worker], here: Worker | None) -> Worker:
        """The next one."""
        return workers[next(self._turn) % len(workers)]


class Here:
    """The caller's own worker; from elsewhere, the least loaded one."""

    def __init__(self) -> None:
        self._elsewhere = LeastLoaded()

    def choose(self, workers: Sequence[Worker], here: Worker | None) -> Worker:
        """The caller's, if it has one."""
        return self._elsewhere.choose(workers, here) if here is None else here


type PlacementName = Literal["least_loaded", "round_robin", "here"]

_POLICIES: dict[str, Callable[[], Placement]] = {"least_loaded": LeastLoaded, "round_robin": RoundRobin, "here": Here}


def policy_for(placement: object) -> Placement:
    """The policy that a user's ``placement=`` or ``on=`` means.

    Raises:
        ValueError: it is a name, and no policy has it.
        TypeError: it is neither a name nor an object with a ``choose`` method.
    """
    known = ", ".join(map(repr, _POLICIES))
    if isinstance(placement, str):
        policy = _POLICIES.get(placement)
        if policy is None:
            raise ValueError(f"no placement is called {placement!r}; use one of {known}, a Worker, or a policy object")
        return policy()
    if isinstance(placement, type) or not callable(getattr(placement, "choose", None)):
        raise TypeError(f"{placement!r} is no placement; use one of {known}, a Worker, or an object with choose()")
    return cast("Placement", placement)


def by_key(key: Hashable, workers: Sequence[Worker]) -> Worker:
    """The worker that ``key`` belongs to, by rendezvous hashing.

    Every key ranks all workers; it goes to the first of its ranking. So when a worker leaves or joins, only the keys
    that were or will be its own move. Equal keys meet within one process; strings hash differently in the next one.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    """
    seed = hash(key)
    return max(workers, key=lambda worker: _mix(seed ^ _mix(worker.index + 1)))


def _mix(value: int) -> int:
    """Spread the bits of ``value`` over 64: the finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
