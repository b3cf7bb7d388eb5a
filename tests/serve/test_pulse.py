"""When a loop counts as hanging: the policy, over every history of a few looks."""

import itertools

from polyloop.serve._pulse import Change, Pulse


def look(pulse: Pulse, now: float, *, asleep: bool = False) -> tuple[Change, int | None]:
    return pulse.look(now, asleep), pulse.ping(now, asleep)


def test_one_that_answers_never_hangs() -> None:
    """Each look sends the next ping."""
    pulse = Pulse(0.5)
    for number in range(1, 20):
        assert look(pulse, float(number)) == (None, number)
        pulse.pong(number)


def test_one_that_sleeps_is_not_asked() -> None:
    """A loop that has nothing to do is not woken for this."""
    pulse = Pulse(0.5)
    assert [look(pulse, float(now), asleep=True) for now in range(10)] == [(None, None)] * 10


def test_one_that_does_not_answer_hangs_once_and_recovers_once() -> None:
    """Both are told at the change only."""
    pulse = Pulse(0.5)
    assert look(pulse, 0.0) == (None, 1)
    assert pulse.due == 0.5
    assert look(pulse, 0.2) == (None, None)
    assert look(pulse, 0.5) == ("hangs", None)
    assert pulse.hanging
    assert look(pulse, 9.0) == (None, None)
    pulse.pong(1)
    assert look(pulse, 9.2) == ("recovers", 2)
    assert not pulse.hanging
    pulse.pong(2)
    assert look(pulse, 9.4) == (None, 3)


def test_one_that_sleeps_again_has_recovered() -> None:
    """It has drained its mailbox before."""
    pulse = Pulse(0.5)
    assert [look(pulse, now)[0] for now in (0.0, 0.3, 0.6)] == [None, None, "hangs"]
    assert look(pulse, 0.8, asleep=True) == ("recovers", None)


def test_a_process_that_was_stopped_does_not_hang() -> None:
    """The first look after a pause finds an old ping; the loop gets until the next one to answer."""
    pulse = Pulse(0.5)
    assert look(pulse, 0.0) == (None, 1)
    assert look(pulse, 3600.0) == (None, None)
    pulse.pong(1)
    assert look(pulse, 3600.2) == (None, 2)


def live(events: tuple[str, ...]) -> None:
    pulse = Pulse(1.5)
    told: list[Change] = []
    last = 0
    asked_at: float | None = None  # of the ping that is not answered
    for now, event in enumerate((*events, "sleep")):
        if event == "pong":
            pulse.pong(last)
            asked_at = None
            continue
        change, number = look(pulse, float(now), asleep=event == "sleep")
        if change == "hangs":
            assert asked_at is not None
            assert now - asked_at >= 1.5
        if event == "sleep":
            asked_at = None
        if number is not None:
            assert event == "look"
            last, asked_at = number, now
        if change is not None:
            told.append(change)
    assert told == ["hangs", "recovers"] * (len(told) // 2)
    assert not pulse.hanging


def test_every_history_of_nine_looks() -> None:
    """Hangs and recoveries alternate; only what was asked and has not answered in time hangs; all ends well."""
    for events in itertools.product(("look", "sleep", "pong"), repeat=9):
        live(events)
