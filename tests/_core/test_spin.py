"""The spin policy: tables of sleeps, and what the next one is preceded by."""

import pytest

from polyloop._core import _prims, _spin
from polyloop._core._spin import SPIN_NS, SpinPolicy, spin_ns_for, spin_permits


def skipped(policy: SpinPolicy) -> int:
    """How many sleeps are taken without a spin before the next that has one."""
    count = 0
    while not policy.next_spin_ns():
        count += 1
    return count


def test_the_first_sleep_is_preceded_by_a_spin() -> None:
    """Nothing is known yet, so it is tried."""
    assert SpinPolicy(SPIN_NS).next_spin_ns() == SPIN_NS


def test_zero_never_spins() -> None:
    """``spin=False`` is off for good, whatever happens."""
    policy = SpinPolicy(0)
    policy.hit()
    policy.woken(1)
    assert policy.next_spin_ns() == 0


def test_each_miss_doubles_the_sleeps_without_a_spin() -> None:
    """A loop that gets nothing by spinning soon hardly ever does, and still tries now and then."""
    policy = SpinPolicy(SPIN_NS)
    skips: list[int] = []
    for _ in range(10):
        policy.miss(SPIN_NS)
        skips.append(skipped(policy))
    assert skips == [2, 4, 8, 16, 32, 64, 128, 256, 256, 256]


def test_hits_halve_the_price_of_the_next_miss() -> None:
    """A loop that spins with success now and then is not put off by one miss for long, nor won over by one hit."""
    policy = SpinPolicy(SPIN_NS)
    for _ in range(5):
        policy.miss(SPIN_NS)
        skipped(policy)
    policy.hit()
    assert policy.next_spin_ns() == SPIN_NS
    policy.miss(SPIN_NS)
    assert skipped(policy) == 32
    for _ in range(10):
        policy.hit()
    policy.miss(SPIN_NS)
    assert skipped(policy) == 2


def test_short_sleeps_bring_the_next_try_nearer() -> None:
    """A sleep that a spin might have saved is a hint: it counts for several."""
    policy = SpinPolicy(SPIN_NS)
    for _ in range(5):
        policy.miss(SPIN_NS)
    policy.woken(SPIN_NS)
    assert skipped(policy) == 32 - _spin._SHORT_SLEEP_CREDIT


def test_hints_do_not_pile_up() -> None:
    """However many short sleeps there were, one miss puts the next try off again."""
    policy = SpinPolicy(SPIN_NS)
    for _ in range(100):
        policy.woken(SPIN_NS)
    policy.miss(SPIN_NS)
    assert skipped(policy) == 2


def test_a_long_sleep_changes_nothing() -> None:
    """A post after a long sleep would not have been found by a spin."""
    policy = SpinPolicy(SPIN_NS)
    policy.miss(SPIN_NS)
    policy.woken(100 * SPIN_NS)
    assert skipped(policy) == 2


def test_a_preempted_spin_stops_spinning_for_long() -> None:
    """A spin that took much longer than asked shows that no core is idle."""
    policy = SpinPolicy(SPIN_NS)
    policy.miss(_spin._PREEMPTED_FACTOR * SPIN_NS + 1)
    assert skipped(policy) == _spin._MAX_PENALTY


@pytest.mark.parametrize(
    ("option", "expected"), [(True, SPIN_NS), (False, 0), (0, 0), (0.00002, 20_000), (0.01, 10_000_000)]
)
def test_the_option_is_a_time_or_a_switch(option: bool | float, expected: int) -> None:
    """``spin=`` takes seconds or a bool."""
    assert spin_ns_for(option) == expected


@pytest.mark.parametrize("option", [-0.001, 0.0101, 1.0, float("nan")])
def test_an_unreasonable_time_is_refused(option: float) -> None:
    """More than 10 ms of spinning before each sleep is a mistake of unit."""
    with pytest.raises(ValueError, match="spin is a time in seconds"):
        spin_ns_for(option)


@pytest.mark.parametrize(
    ("gil", "cores", "expected"), [(False, 8, SPIN_NS), (False, 2, SPIN_NS), (False, 1, 0), (True, 8, 0)]
)
def test_the_default_spins_where_another_core_can_answer(
    monkeypatch: pytest.MonkeyPatch, gil: bool, cores: int, expected: int
) -> None:
    """With the GIL or on one core the poster cannot run while this thread spins."""
    monkeypatch.setattr(_prims, "gil_enabled", lambda: gil)
    monkeypatch.setattr(_prims, "usable_cores", lambda: cores)
    assert spin_ns_for(None) == expected


def test_there_is_one_permit_a_core_at_most() -> None:
    """Permits in use at this moment are missing; there are never more than cores."""
    assert len(spin_permits) <= _prims.usable_cores()
