"""``Gate``, ``Sequencer`` and ``TestThread``: an order for threads, and errors instead of hangs."""

import threading

import pytest

from polyloop.testing import Gate, Sequencer, TestThread


def test_a_gate_holds_threads_until_it_is_open() -> None:
    """``reached`` tells that they stand there."""
    gate = Gate("here")
    passed: list[None] = []

    def go_through() -> None:
        gate.pause()
        passed.append(None)

    threads = [TestThread(go_through) for _ in range(3)]
    gate.reached(3)
    assert passed == []
    assert repr(gate) == "<Gate 'here' closed arrived=3>"
    gate.open()
    for thread in threads:
        thread.result()
    assert len(passed) == 3
    gate.pause()  # open for good


def test_a_gate_that_nobody_reaches_or_opens_says_so() -> None:
    """With its name."""
    gate = Gate("forgotten", timeout=0.01)
    with pytest.raises(TimeoutError, match="'forgotten' closed arrived=0> was not reached by 1"):
        gate.reached()
    with pytest.raises(TimeoutError, match=r"'forgotten' closed arrived=1> was not opened within 0\.01 s"):
        gate.pause()


def test_steps_run_in_the_order_of_their_numbers() -> None:
    """Whichever thread comes first."""
    step = Sequencer()
    order: list[int] = []

    def work(*positions: int) -> None:
        for position in positions:
            with step(position):
                order.append(position)

    threads = [TestThread(work, *positions) for positions in ((1, 4), (0, 3, 5), (2,))]
    for thread in threads:
        thread.result()
    assert order == list(range(6))


def test_a_step_that_fails_fails_those_that_wait_for_it() -> None:
    """At once, naming what happened."""
    step = Sequencer()
    first_waits = threading.Event()

    def later() -> None:
        first_waits.set()
        with step(1):
            raise AssertionError("must not begin")

    thread = TestThread(later)
    first_waits.wait(30)
    with pytest.raises(KeyError), step(0):
        raise KeyError("oops")
    with pytest.raises(RuntimeError, match=r"step 1 cannot begin: step 0 failed with KeyError\('oops'\)"):
        thread.result()


def test_a_step_that_never_comes_is_named() -> None:
    """By those that wait for it, and everybody after them."""
    step = Sequencer(timeout=0.01)
    with pytest.raises(TimeoutError, match=r"step 1 waited 0\.01 s for step 0 to end"), step(1):
        raise AssertionError("must not begin")
    with pytest.raises(RuntimeError, match="step 0 never ended"), step(0):
        raise AssertionError("must not begin")


def test_a_number_is_used_once() -> None:
    """A second use is a mistake in the test."""
    step = Sequencer()
    with step(0):
        pass
    with pytest.raises(RuntimeError, match="step 0 was used before"), step(0):
        raise AssertionError("must not begin")


def test_what_a_thread_raises_reaches_the_test() -> None:
    """And what it returns."""
    assert TestThread(max, 1, 2).result() == 2
    with pytest.raises(ZeroDivisionError):
        TestThread(lambda: 1 // 0).result()
    assert TestThread(threading.get_ident).result() != threading.get_ident()


def test_a_thread_that_does_not_end_is_shown_with_its_stack() -> None:
    """The message says where it is."""
    gate = Gate()

    def waits_here() -> None:
        gate.pause()

    thread = TestThread(waits_here, name="slow", timeout=0.05)
    with pytest.raises(TimeoutError, match=r"'slow' did not end within 0\.05 s; it is at(.|\n)*in waits_here"):
        thread.result()
    assert thread.alive
    gate.open()
