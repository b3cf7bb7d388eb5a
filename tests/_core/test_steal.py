"""The budget of starts and the size of a theft: tables."""

import pytest

from polyloop._core._steal import MAX_BATCH, MAX_STOLEN, SLICE_NS, StartBudget, next_batch, steal_count


@pytest.mark.parametrize(
    ("waiting", "taken"), [(0, 0), (1, 1), (2, 1), (3, 2), (10, 5), (2 * MAX_STOLEN, MAX_STOLEN), (10**6, MAX_STOLEN)]
)
def test_a_thief_takes_half_rounded_up(waiting: int, taken: int) -> None:
    """One task is worth taking, and a theft has a limit."""
    assert steal_count(waiting) == taken


@pytest.mark.parametrize(
    ("batch", "took_ns", "expected"),
    [
        (1, 0, 2),
        (1, SLICE_NS, 2),
        (8, SLICE_NS // 2, 16),
        (MAX_BATCH, 0, MAX_BATCH),
        (8, 2 * SLICE_NS, 4),
        (8, 100 * SLICE_NS, 1),
        (1, 10**12, 1),
    ],
)
def test_the_batch_follows_what_fits_into_a_slice(batch: int, took_ns: int, expected: int) -> None:
    """It doubles while it fits, shrinks in proportion when it does not, and stays between one and the limit."""
    assert next_batch(batch, took_ns) == expected


def test_short_first_steps_are_started_in_growing_batches() -> None:
    """A thousand tasks that take no time are started in a dozen ticks."""
    budget, waiting, now, batches = StartBudget(), 1000, 0, []
    while waiting:
        count = budget.allow(waiting, now)
        batches.append(count)
        waiting -= count
        now += 1_000
    assert batches[:5] == [1, 2, 4, 8, 16]
    assert max(batches) <= MAX_BATCH
    assert len(batches) <= 12


def test_long_first_steps_are_started_one_a_tick() -> None:
    """While a task's first step takes longer than a slice, all others stay where a thief can take them."""
    budget = StartBudget()
    assert [budget.allow(100, tick * 10 * SLICE_NS) for tick in range(5)] == [1] * 5


def test_time_without_waiting_tasks_does_not_count() -> None:
    """A pause between two batches says nothing about how long first steps take."""
    budget = StartBudget()
    assert budget.allow(1, 0) == 1  # all were started: the time until the next call is not theirs
    assert budget.allow(10, 10**12) == 1
    assert budget.allow(9, 10**12 + 1) == 2
