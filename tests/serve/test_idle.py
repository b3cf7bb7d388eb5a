"""Which connections have waited too long: the policy, with times as numbers."""

from polyloop.serve._idle import Waiting


def test_one_is_late_when_it_has_waited_for_so_long() -> None:
    """Not a moment earlier."""
    waiting = Waiting[str]()
    assert waiting.late(10.0, {"a": None}, 5.0) == []
    assert waiting.late(14.9, {"a": None}, 5.0) == []
    assert waiting.late(15.0, {"a": None}, 5.0) == ["a"]


def test_the_wait_begins_anew_after_each_request() -> None:
    """What counts is the time since the last one."""
    waiting = Waiting[str]()
    first, second = object(), object()
    waiting.late(0.0, {"a": first}, 5.0)
    assert waiting.late(6.0, {"a": second}, 5.0) == []
    assert waiting.late(10.9, {"a": second}, 5.0) == []
    assert waiting.late(11.0, {"a": second}, 5.0) == ["a"]


def test_who_does_not_wait_any_more_is_forgotten() -> None:
    """And begins anew when it waits again."""
    waiting = Waiting[str]()
    waiting.late(0.0, {"a": None, "b": None}, 5.0)
    assert waiting.late(4.0, {"b": None}, 5.0) == []
    assert waiting.late(6.0, {"a": None, "b": None}, 5.0) == ["b"]
    assert waiting.late(11.0, {"a": None}, 5.0) == ["a"]


def test_a_late_one_stays_late_until_it_goes() -> None:
    """Whoever closes it may need a moment."""
    waiting = Waiting[str]()
    waiting.late(0.0, {"a": None}, 1.0)
    assert waiting.late(1.0, {"a": None}, 1.0) == ["a"]
    assert waiting.late(1.1, {"a": None}, 1.0) == ["a"]


def test_no_patience_is_late_at_once() -> None:
    """Zero seconds are no wait at all."""
    assert Waiting[str]().late(3.0, {"a": None}, 0.0) == ["a"]
