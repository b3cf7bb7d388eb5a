"""Placement: the policies by themselves, and where tasks really run."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from tests.runtime.helpers import PATIENCE, Gate, forever, held, in_thread, is_closed, where

import polyloop
from polyloop import Runtime, Worker
from polyloop.runtime import Here, LeastLoaded, RoundRobin
from polyloop.runtime._placement import by_key


@dataclass
class FakeWorker:
    """What a policy may look at."""

    index: int
    load: int = 0
    alive: bool = True


def fakes(*loads: int) -> Sequence[Worker]:
    """Workers with these loads."""
    return cast("Sequence[Worker]", tuple(FakeWorker(index, load) for index, load in enumerate(loads)))


# Pure policies


def test_least_loaded_picks_the_emptiest() -> None:
    """Wherever it begins to look."""
    workers = fakes(3, 1, 2, 5)
    policy = LeastLoaded()
    assert {policy.choose(workers, None).index for _ in range(8)} == {1}


def test_least_loaded_takes_turns_among_equals() -> None:
    """So that idle workers share the work."""
    workers = fakes(0, 0, 0)
    policy = LeastLoaded()
    assert [policy.choose(workers, None).index for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_least_loaded_looks_at_eight_of_many() -> None:
    """A spawn on a large pool stays cheap: the one empty worker is found when it is among the eight looked at."""
    workers = fakes(*([9] * 99), 0)
    policy = LeastLoaded()
    chosen = Counter(policy.choose(workers, None).index for _ in range(100))
    assert chosen[99] == 8


def test_round_robin_goes_round() -> None:
    """Whatever the load."""
    workers = fakes(9, 0, 5)
    policy = RoundRobin()
    assert [policy.choose(workers, None).index for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_gives_each_thread_its_own_turn() -> None:
    """Turns are taken atomically: N threads that place N*k tasks hit every worker k times."""
    workers = fakes(0, 0, 0, 0)
    policy = RoundRobin()
    chosen: list[int] = []
    barrier = threading.Barrier(4)

    def place() -> None:
        barrier.wait()
        chosen.extend([policy.choose(workers, None).index for _ in range(1000)])

    threads = [threading.Thread(target=place) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(chosen) == dict.fromkeys(range(4), 1000)


def test_here_is_the_callers_worker() -> None:
    """And the least loaded one from elsewhere."""
    workers = fakes(4, 3, 9)
    policy = Here()
    assert policy.choose(workers, workers[2]) is workers[2]
    assert policy.choose(workers, None) is workers[1]


def test_keys_are_spread_evenly() -> None:
    """No worker gets much more than its share."""
    workers = fakes(*([0] * 8))
    counts = Counter(by_key(key, workers).index for key in range(8000))
    assert set(counts) == set(range(8))
    assert 800 < min(counts.values()) <= max(counts.values()) < 1200


def test_key_is_stable() -> None:
    """Equal keys, of whatever type, meet on one worker."""
    workers = fakes(*([0] * 5))
    for key in (1, "user-7", ("a", 2), None, frozenset({3})):
        assert len({by_key(key, workers).index for _ in range(5)}) == 1
    assert by_key(1, workers) is by_key(1.0, workers)


@pytest.mark.parametrize("gone", range(5))
def test_removing_a_worker_moves_only_its_keys(gone: int) -> None:
    """Rendezvous hashing."""
    workers = fakes(*([0] * 5))
    rest = [worker for worker in workers if worker.index != gone]
    for key in range(2000):
        before = by_key(key, workers)
        after = by_key(key, rest)
        assert before.index == gone or after is before


# On real loops


def test_on_a_given_worker() -> None:
    """By object, from a plain thread and from a loop."""

    async def from_a_loop() -> list[str]:
        runtime = polyloop.current_runtime()
        return [await runtime.spawn(where, on=worker) for worker in runtime.workers]

    with Runtime(loops=3) as runtime:
        names = [runtime.spawn(where, on=worker).result(PATIENCE) for worker in runtime.workers]
        assert names == ["polyloop-0", "polyloop-1", "polyloop-2"]
        assert runtime.run(from_a_loop()) == names
        handle = runtime.spawn(where, on=runtime.workers[2])
        assert handle.worker is runtime.workers[2]
        handle.result(PATIENCE)


def test_pinned_tasks_of_one_thread_start_in_order() -> None:
    """On a worker and by key: first spawned, first started."""
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    with Runtime(loops=2) as runtime:
        with held(runtime, runtime.workers[1]):
            handles = [runtime.spawn(note, number, on=runtime.workers[1]) for number in range(200)]
        for handle in handles:
            handle.result(PATIENCE)
        assert order == list(range(200))
        order.clear()
        for handle in [runtime.spawn(note, number, key="k") for number in range(200)]:
            handle.result(PATIENCE)
        assert order == list(range(200))


def test_tasks_of_one_key_share_a_worker() -> None:
    """From any thread."""
    with Runtime(loops=4) as runtime:
        for key in range(20):
            names = {runtime.spawn(where, key=key).result(PATIENCE) for _ in range(3)}
            names.add(in_thread(lambda key=key: runtime.spawn(where, key=key).result(PATIENCE)))  # type: ignore[misc]
            assert len(names) == 1


def test_round_robin_on_real_loops() -> None:
    """Every worker gets its turn, here without stealing."""
    with Runtime(loops=3, placement="round_robin", steal=False) as runtime:
        names = [runtime.spawn(where).result(PATIENCE) for _ in range(6)]
        assert names == ["polyloop-0", "polyloop-1", "polyloop-2"] * 2


def test_least_loaded_avoids_the_busy() -> None:
    """Running tasks count, not only waiting ones."""
    with Runtime(loops=2, steal=False) as runtime:
        for _ in range(10):
            runtime.spawn(forever, on=runtime.workers[0])
        runtime.spawn(where, on=runtime.workers[0]).result(PATIENCE)
        assert {runtime.spawn(where).result(PATIENCE) for _ in range(8)} == {"polyloop-1"}


def test_here_keeps_children_on_the_callers_loop() -> None:
    """As an option of spawn and of a group, and as the runtime's placement."""

    async def family() -> set[str]:
        async with polyloop.TaskGroup() as group:
            children = [group.create_task(where(), on="here") for _ in range(5)]
        spawned = [polyloop.spawn(where, on="here") for _ in range(5)]
        names = {await child for child in (*children, *spawned)}
        return names | {threading.current_thread().name}

    with Runtime(loops=3) as runtime:
        for worker in runtime.workers:
            assert runtime.spawn(family, on=worker).result(PATIENCE) == {worker.name}
    with Runtime(loops=3, placement="here") as runtime:

        async def nested() -> set[str]:
            return {await polyloop.spawn(where) for _ in range(5)} | {threading.current_thread().name}

        assert runtime.spawn(nested, on=runtime.workers[2]).result(PATIENCE) == {"polyloop-2"}


def test_users_policy_object() -> None:
    """It gets the workers and the caller's own; as the runtime's placement and for one task."""
    seen: list[tuple[int, str | None]] = []

    class Last:
        def choose(self, workers: Sequence[Worker], here: Worker | None) -> Worker:
            seen.append((len(workers), here.name if here else None))
            return workers[-1]

    async def nested() -> str:
        return await polyloop.spawn(where)

    with Runtime(loops=3, placement=Last(), steal=False) as runtime:
        assert runtime.spawn(where).result(PATIENCE) == "polyloop-2"
        assert runtime.spawn(nested, on=runtime.workers[0]).result(PATIENCE) == "polyloop-2"
        assert seen == [(3, None), (3, "polyloop-0")]
    with Runtime(loops=3, steal=False) as runtime:
        assert runtime.spawn(where, on=Last()).result(PATIENCE) == "polyloop-2"


def test_policy_that_raises_is_the_callers_error() -> None:
    """The coroutine is closed, the runtime goes on."""

    class Broken:
        def choose(self, workers: Sequence[Worker], here: Worker | None) -> Worker:
            raise LookupError("no idea")

    with Runtime(loops=2, placement=Broken()) as runtime:
        coro = where()
        with pytest.raises(LookupError, match="no idea"):
            runtime.submit(coro)
        assert is_closed(coro)
        assert runtime.spawn(where, on="round_robin").result(PATIENCE)


@pytest.mark.parametrize("answer", [None, 1, "polyloop-0"])
def test_policy_that_returns_no_worker(answer: Any) -> None:
    """Said at the spawn, with the value."""

    class Wrong:
        def choose(self, workers: Sequence[Worker], here: Worker | None) -> Worker:
            return answer  # type: ignore[no-any-return]

    with Runtime(loops=2, placement=Wrong()) as runtime, pytest.raises(ValueError) as caught:
        runtime.spawn(where)
    assert str(caught.value) == (
        f"the placement of a task chose {answer!r}; it must return one of the workers of"
        " <Runtime 'polyloop' running loops=2>"
    )


def test_placed_tasks_wait_behind_a_long_step() -> None:
    """Named by worker or key, a task waits for its own loop although another is idle."""
    with Runtime(loops=2) as runtime:
        busy = runtime.workers[0]
        key = next(key for key in range(100) if by_key(key, runtime.workers) is busy)
        with held(runtime, busy):
            named = runtime.spawn(where, on=busy)
            keyed = runtime.spawn(where, key=key)
            gate = Gate()
            gate.open()
            for _ in range(3):  # the idle one has had time to look for work
                runtime.spawn(gate.step, on=runtime.workers[1]).result(PATIENCE)
            assert not named.done()
            assert not keyed.done()
        assert [named.result(PATIENCE), keyed.result(PATIENCE)] == ["polyloop-0"] * 2
        assert runtime.workers[1].stolen == 0
