"""When steps of migratable tasks are worth moving, and how many: all of small ranges, and the tables at the limits."""

import itertools

import pytest

from polyloop._core._balance import CHEAP_NS, MAX_STOLEN, MOVE_NS, SLICE_NS, STUCK_NS, Pace, steal_count, worth_moving

#: Around every limit that the policy knows.
STEPS = (0, 1, 999, CHEAP_NS - 1, CHEAP_NS, MOVE_NS // 3, MOVE_NS // 3 + 1, MOVE_NS - 1, MOVE_NS, 10**12)
STUCK = (0, 1, MOVE_NS, SLICE_NS, SLICE_NS + MOVE_NS - 1, SLICE_NS + MOVE_NS, STUCK_NS - 1, STUCK_NS, 10**12)
WAITING = (*range(70), 2 * MAX_STOLEN - 1, 2 * MAX_STOLEN, 2 * MAX_STOLEN + 1, 10**6)


@pytest.mark.parametrize("step_ns", [each for each in STEPS if each >= CHEAP_NS])
def test_steps_are_worth_moving_that_would_wait_for_longer_than_a_move(step_ns: int) -> None:
    """So many of such a length; or whatever waits behind a slice that goes on though it should be over."""
    for waiting, stuck_ns in itertools.product(WAITING, STUCK):
        expected = waiting * step_ns >= MOVE_NS or stuck_ns >= SLICE_NS + MOVE_NS
        assert worth_moving(waiting, step_ns, stuck_ns) == (waiting > 0 and expected)


@pytest.mark.parametrize("step_ns", [each for each in STEPS if each < CHEAP_NS])
def test_cheap_steps_are_worth_moving_only_behind_a_stuck_one(step_ns: int) -> None:
    """However many there are: to move them costs more than to take them."""
    for waiting, stuck_ns in itertools.product(WAITING, STUCK):
        assert worth_moving(waiting, step_ns, stuck_ns) == (waiting > 0 and stuck_ns >= STUCK_NS)


@pytest.mark.parametrize("step_ns", STEPS)
@pytest.mark.parametrize("stuck_ns", STUCK)
def test_nothing_is_never_worth_moving(step_ns: int, stuck_ns: int) -> None:
    """An empty queue, and a length that was read while others took from it."""
    assert not worth_moving(0, step_ns, stuck_ns)
    assert steal_count(0, step_ns, stuck_ns) == 0


@pytest.mark.parametrize("step_ns", STEPS)
def test_a_thief_takes_half_rounded_up_of_what_is_worth_moving(step_ns: int) -> None:
    """Between one and the limit if it is, never more than there are, and nothing if it is not."""
    for waiting, stuck_ns in itertools.product(WAITING, STUCK):
        count = steal_count(waiting, step_ns, stuck_ns)
        if worth_moving(waiting, step_ns, stuck_ns):
            assert 1 <= count <= min(waiting, MAX_STOLEN)
            assert count == MAX_STOLEN or waiting - count <= count <= waiting - count + 1
        else:
            assert count == 0


def test_more_of_anything_is_never_worth_less() -> None:
    """The verdict and the count grow with what waits, with the steps, and with how long the victim is stuck."""
    for (left, right), step_ns, stuck_ns in itertools.product(itertools.pairwise(WAITING), STEPS, STUCK):
        assert steal_count(left, step_ns, stuck_ns) <= steal_count(right, step_ns, stuck_ns)
    for waiting, (left_ns, right_ns), stuck_ns in itertools.product(WAITING, itertools.pairwise(STEPS), STUCK):
        assert steal_count(waiting, left_ns, stuck_ns) <= steal_count(waiting, right_ns, stuck_ns)
    for waiting, step_ns, (short, long) in itertools.product(WAITING, STEPS, itertools.pairwise(STUCK)):
        assert steal_count(waiting, step_ns, short) <= steal_count(waiting, step_ns, long)


def test_repeated_thefts_take_everything_behind_a_stuck_step() -> None:
    """However much waits: each theft takes some, and the last one the last."""
    for waiting in WAITING[:-1]:
        left = waiting
        for _ in range(waiting + 1):
            left -= steal_count(left, 0, 10**12)
        assert left == 0


@pytest.mark.parametrize("began", [1, 10**9])
@pytest.mark.parametrize("passed", [0, 1, SLICE_NS, 10**12])
def test_a_slice_that_runs_has_gone_on_since_it_began(began: int, passed: int) -> None:
    """And none runs where no beginning is noted."""
    pace = Pace()
    assert pace.stuck_ns(began + passed) == 0
    pace.began_ns = began
    assert pace.stuck_ns(began + passed) == passed
    pace.began_ns = 0
    assert pace.stuck_ns(began + passed) == 0


def test_a_slice_without_steps_says_nothing() -> None:
    """What was known is kept: a thief was faster."""
    pace = Pace()
    pace.note(4, 40_000)
    known = pace.step_ns, pace.stride
    for took_ns in (0, 1, 10**12):
        pace.note(0, took_ns)
        assert (pace.step_ns, pace.stride) == known


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("step_ns", [0, 1, 1_000, 50_000, 10**9])
def test_the_average_comes_near_to_what_the_steps_take(steps: int, step_ns: int) -> None:
    """From any beginning, without ever leaving the range between what was known and what is new."""
    pace = Pace()
    for _ in range(100):
        before = pace.step_ns
        pace.note(steps, steps * step_ns + steps - 1)  # and a rest that is no step's
        assert min(before, step_ns) <= pace.step_ns <= max(before, step_ns)
    assert step_ns - 3 <= pace.step_ns <= step_ns  # whole nanoseconds, a quarter of the difference at a time


@pytest.mark.parametrize("step_ns", [0, 1, 100, 1_000, 5_000, 30_000, 100_000, SLICE_NS, 10**9])
def test_the_strides_of_a_slice_follow_the_steps(step_ns: int) -> None:
    """The clock is looked at often enough for the slice, and after each step that is long."""
    pace = Pace()
    assert pace.stride == 1  # nothing is known yet
    for _ in range(100):
        pace.note(10, 10 * step_ns)
    assert pace.stride >= 1
    assert pace.stride == 1 or pace.stride * pace.step_ns <= SLICE_NS / 4
    assert (pace.stride == 1) == (step_ns >= SLICE_NS // 8)


def test_one_long_slice_is_noticed_at_once() -> None:
    """After it, a single step is worth moving; a few short ones, and it is not any more."""
    pace = Pace()
    assert not worth_moving(1, pace.step_ns, 0)
    pace.note(1, 100 * SLICE_NS)
    assert worth_moving(1, pace.step_ns, 0)
    for _ in range(40):
        pace.note(10, 10_000)
    assert not worth_moving(1, pace.step_ns, 0)
