"""The selector under a real loop: sleeps, spins, timers and sockets."""

import asyncio
import errno
import os
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from polyloop._core import _prims
from polyloop._core._mailbox import Mailbox
from polyloop._core._selector import WorkerSelector
from polyloop._core._spin import SpinPolicy, spin_permits
from polyloop.testing import Gate, TestLoop, TestThread


class Tenant:
    """A loop without asyncio; its ``idle`` tells what ``on_idle`` returns."""

    def __init__(self, spin_ns: int = 0) -> None:
        self.reports: list[BaseException] = []
        self.policy = SpinPolicy(spin_ns)
        self.selector = WorkerSelector(self.policy)
        self.mailbox = Mailbox(self.selector.wake, self.reports.append)
        self.runnable: deque[Any] = deque()
        self.bound: deque[Any] = deque()
        self.unstarted: deque[Any] = deque()
        self.idle_calls = 0
        self.find: Callable[[], bool] = lambda: False
        self.selector.attach(self)

    def serve(self) -> None:
        self.mailbox.drain()
        self.unstarted.clear()

    def on_idle(self) -> bool:
        self.idle_calls += 1
        return self.find()


@pytest.fixture
def tenant() -> Iterator[Tenant]:
    made = Tenant()
    yield made
    made.selector.close()


def test_a_post_is_served_without_a_sleep(tenant: Tenant) -> None:
    """It was there before the tick: no token, no wake."""
    seen: list[int] = []
    tenant.mailbox.post(seen.append, 1)
    assert tenant.selector.select(None) == []
    assert seen == [1]
    assert tenant.selector.sleeps == 0
    assert tenant.idle_calls == 0


def test_a_timeout_of_zero_never_sleeps(tenant: Tenant) -> None:
    """The loop has callbacks that are ready."""
    assert tenant.selector.select(0) == []
    assert tenant.selector.select(-1) == []
    assert tenant.selector.sleeps == 0


def test_a_sleep_ends_at_its_timeout_and_leaves_no_token(tenant: Tenant) -> None:
    """What is posted afterwards costs no system call."""
    assert tenant.selector.select(0.001) == []
    assert tenant.selector.sleeps == 1
    assert tenant.selector.slept_ns >= 1_000_000
    assert not tenant.mailbox.tokens
    assert not tenant.mailbox.signal()


def test_a_post_ends_the_sleep(tenant: Tenant) -> None:
    """The waker is drained, so the next sleep is not cut short by the same wake."""
    seen: list[int] = []
    asleep = Gate()
    announce = tenant.mailbox.tokens

    class Announce(deque[None]):
        def append(self, item: None, /) -> None:
            announce.append(item)
            asleep.pause()

    asleep.open()
    tenant.selector._tokens = Announce()
    tenant.selector._tokens.pop = announce.pop  # type: ignore[method-assign]
    thread = TestThread(tenant.selector.select, None)
    asleep.reached()
    tenant.mailbox.post(seen.append, 1)
    thread.result()
    assert seen == [1]
    assert tenant.selector._wakes_owed == 0
    assert tenant.selector._waker.drain() == 0


def late_wake(tenant: Tenant) -> None:
    """A poster takes the token; the sleeper sees its item before the write has landed."""
    tenant.mailbox.tokens.append(None)
    tenant.mailbox.tokens.pop()
    tenant.selector._retract()
    tenant.selector.wake()


def test_a_late_wake_ends_one_sleep_only(tenant: Tenant) -> None:
    """It is spurious, and is drained; what was owed is paid."""
    late_wake(tenant)
    assert tenant.selector._wakes_owed == 1
    events = tenant.selector.select(30)
    assert [key.data for key, _ in events] == [(None, None)], "asyncio ignores an event without callbacks"
    assert tenant.selector._wakes_owed == 0
    assert tenant.selector.select(0.001) == []


def test_a_late_wake_does_not_keep_a_spinning_loop_awake() -> None:
    """It counts as found once; the second spin misses, and the loop sleeps."""
    tenant = Tenant(spin_ns=1_000_000)
    late_wake(tenant)
    assert len(tenant.selector.select(0.001)) == 1
    assert tenant.selector.select(0.001) == []
    assert tenant.selector.sleeps == 1
    tenant.selector.close()


def test_work_found_when_idle_is_served_instead_of_a_sleep(tenant: Tenant) -> None:
    """Stolen tasks, for a worker; the token is taken back first."""

    def find() -> bool:
        tenant.unstarted.append(1)
        return True

    tenant.find = find
    tenant.selector.select(None)
    assert tenant.selector.sleeps == 0
    assert not tenant.mailbox.tokens
    assert not tenant.unstarted


def test_a_spin_that_hits_serves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The post comes while the loop looks: no sleep, and the permit is back."""
    tenant = Tenant(spin_ns=10_000_000)
    permits = len(spin_permits)
    seen: list[int] = []
    looks = iter(range(10**9))
    real = _prims.monotonic_ns

    def clock() -> int:
        if next(looks) == 2:  # inside of the spin
            tenant.mailbox.post(seen.append, 1)
            assert len(spin_permits) == permits - 1
        return real()

    monkeypatch.setattr(_prims, "monotonic_ns", clock)
    tenant.selector.select(None)
    assert seen == [1]
    assert tenant.selector.sleeps == 0
    assert len(spin_permits) == permits
    tenant.selector.close()


def test_a_spin_that_misses_sleeps_and_gives_its_permit_back() -> None:
    """And the policy hears of it."""
    tenant = Tenant(spin_ns=20_000)
    permits = len(spin_permits)
    tenant.selector.select(0.001)
    assert tenant.selector.sleeps == 1
    assert tenant.policy.next_spin_ns() == 0
    assert len(spin_permits) == permits
    tenant.selector.close()


def test_the_permit_of_a_spin_is_back_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is served may run for long: another worker may spin meanwhile."""
    tenant = Tenant(spin_ns=10_000_000)
    permits = len(spin_permits)
    seen: list[int] = []
    looks = iter(range(10**9))
    real = _prims.monotonic_ns

    def clock() -> int:
        if next(looks) == 2:  # inside of the spin
            tenant.mailbox.post(lambda: seen.append(len(spin_permits)))
        return real()

    monkeypatch.setattr(_prims, "monotonic_ns", clock)
    tenant.selector.select(None)
    assert seen == [permits]
    assert tenant.selector.sleeps == 0
    tenant.selector.close()


def test_a_socket_that_ends_the_sleep_beside_a_post_comes_first(tenant: Tenant) -> None:
    """Its event is returned before anything runs that may give its number to another; the next tick serves."""
    seen: list[int] = []
    reader, writer = socket.socketpair()
    with reader, writer:
        key = tenant.selector.register(reader, selectors.EVENT_READ, "data")
        real = tenant.selector.wake

        def wake() -> None:
            writer.send(b"x")
            real()

        asleep = Gate()
        announce = tenant.mailbox.tokens

        class Announce(deque[None]):
            def append(self, item: None, /) -> None:
                announce.append(item)
                asleep.pause()

        tenant.mailbox._wake = wake
        tenant.selector._tokens = Announce()
        tenant.selector._tokens.pop = announce.pop  # type: ignore[method-assign]
        thread = TestThread(tenant.selector.select, None)
        asleep.reached()

        def find() -> bool:
            tenant.mailbox.post(seen.append, 1)  # after the last look
            return False

        tenant.find = find
        asleep.open()
        assert (key, selectors.EVENT_READ) in thread.result()
        assert seen == []
        tenant.selector.unregister(reader)
        tenant.selector.select(None)
        assert seen == [1]


def test_no_permit_means_no_spin() -> None:
    """All cores have their spinner: sleep at once."""
    tenant = Tenant(spin_ns=10_000_000)
    taken = [spin_permits.pop() for _ in range(len(spin_permits))]
    try:
        tenant.selector.select(0.001)
        assert tenant.selector.slept_ns >= 1_000_000
        assert tenant.policy.next_spin_ns() > 0, "nothing was tried, so nothing was learnt"
    finally:
        spin_permits.extend(taken)
        tenant.selector.close()


def test_a_socket_that_becomes_ready_during_a_spin_is_delivered() -> None:
    """The spin polls the sockets too; the kernel's event is returned as from a sleep."""
    tenant = Tenant(spin_ns=10_000_000)
    reader, writer = socket.socketpair()
    try:
        key = tenant.selector.register(reader, selectors.EVENT_READ, "data")
        writer.send(b"x")
        assert tenant.selector.select(None) == [(key, selectors.EVENT_READ)]
        assert tenant.selector.sleeps == 0
    finally:
        tenant.selector.close()
        reader.close()
        writer.close()


def test_an_exception_out_of_the_sleep_leaves_no_token(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the poll: a token left behind would let a poster write to a waker that is closed by then."""

    def interrupted(self: object, timeout: float | None = None) -> list[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(selectors.DefaultSelector, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tenant.selector.select(None)
    assert not tenant.mailbox.tokens
    assert tenant.selector._wakes_owed == 0


def test_closing_waits_for_a_wake_that_is_owed() -> None:
    """A poster is between taking the token and writing: its write must not hit a stranger's descriptor."""
    tenant = Tenant()
    tenant.mailbox.tokens.append(None)
    gate = Gate()

    def slow_wake() -> None:
        gate.pause()
        tenant.selector.wake()

    tenant.mailbox._wake = slow_wake
    poster = TestThread(tenant.mailbox.signal)
    gate.reached()
    tenant.selector._retract()  # the sleep ended by itself
    closer = TestThread(tenant.selector.close)
    gate.open()
    closer.result()
    assert poster.result() is True
    assert tenant.selector._wakes_owed == 0


def test_a_wake_that_never_comes_leaks_the_waker_rather_than_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The poster was stopped for good: its descriptor stays open, so that nothing else gets its number."""
    monkeypatch.setattr("polyloop._core._selector._LAST_WAKE_TIMEOUT", 0.01)
    tenant = Tenant()
    tenant.selector._wakes_owed = 1
    descriptor = tenant.selector._waker.fileno()
    tenant.selector.close()
    os.fstat(descriptor)
    tenant.selector._waker.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(descriptor)


# Under asyncio


@pytest.mark.parametrize("spin", [False, 0.0005], ids=["no spin", "spin"])
def test_timers_are_on_time_and_in_order(spin: float) -> None:
    """None fires early, whether or not the loop spins before it sleeps."""

    async def timers() -> list[tuple[float, float]]:
        loop = asyncio.get_running_loop()
        fired: list[tuple[float, float]] = []
        done = asyncio.Event()
        began = loop.time()
        delays = (0.003, 0.0005, 0.0, 0.001)
        for delay in delays:
            loop.call_later(delay, lambda delay=delay: fired.append((delay, loop.time() - began)))  # type: ignore[misc]
        loop.call_later(0.004, done.set)
        await done.wait()
        return fired

    with TestLoop(spin=spin) as loop:
        fired = loop.run(timers)
    assert [delay for delay, _ in fired] == [0.0, 0.0005, 0.001, 0.003]
    assert all(took >= delay for delay, took in fired)


@pytest.mark.parametrize("spin", [False, True], ids=["no spin", "spin"])
def test_a_stream_is_served_between_posts(spin: bool) -> None:
    """A loop that is never without posts still looks at its sockets."""

    async def echo(sock: socket.socket, stop: list[None]) -> bytes:
        loop = asyncio.get_running_loop()
        received = await loop.sock_recv(sock, 5)
        stop.append(None)
        return received

    reader, writer = socket.socketpair()
    reader.setblocking(False)
    stop: list[None] = []
    with reader, writer, TestLoop(spin=spin) as loop:

        def busy() -> None:
            if not stop:
                loop.worker.post(busy)

        handle = loop.spawn(echo, reader, stop)
        loop.worker.post(busy)
        writer.send(b"hello")
        assert handle.result(timeout=30) == b"hello"


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals for one thread")
def test_a_signal_that_interrupts_the_poll_changes_nothing(left: TestLoop) -> None:
    """The sleep goes on (PEP 475), and the next post is served."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        left.wait_all_blocked()
        signal.pthread_kill(left.worker.ident, signal.SIGUSR1)
        assert left.run(threading.get_ident) == left.worker.ident
    finally:
        signal.signal(signal.SIGUSR1, before)
