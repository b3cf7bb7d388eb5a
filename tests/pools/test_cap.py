"""``ConnectionCap``: permits for connections that clients keep in pools of their own, one for each loop."""

import asyncio
import contextlib
import gc
import itertools
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable

import pytest
from tests.helpers import explore_for_longer, until

import polyloop
from polyloop.pools import PoolClosedError, per_loop
from polyloop.pools._cap import ConnectionCap, Seat
from polyloop.testing import Interleaving, TestLoop, explore

PATIENCE = 30.0


class Conn:
    """A connection of a made-up client."""

    def __init__(self, client: "Client", key: Hashable) -> None:
        self.key = key
        self.since = time.monotonic()
        self.client = client
        self.idle = False
        self.lent = False
        self.ordered = False
        self.uses = 0

    def lend(self) -> None:
        assert self.idle
        self.lent = True

    def unlend(self) -> None:
        self.lent = False

    def give_up(self) -> None:
        assert self.idle
        assert not self.lent
        self.ordered = True
        self.client.close(self)


class Client:
    """A client on one loop, which keeps what it has made."""

    def __init__(self, net: "Net") -> None:
        self.net = net
        self.seat = Seat[Conn](net.cap, self._idle)
        self.conns: list[Conn] = []
        self.got: list[tuple[str, Conn]] = []
        self.over = False

    def _idle(self) -> list[Conn]:
        return [conn for conn in self.conns if conn.idle and not conn.lent]

    async def open(self, key: Hashable = "server") -> Conn:
        at, again = time.monotonic(), False
        while True:
            for conn in self._idle():
                if conn.key == key and (again or not self.seat.waits(key)):
                    return self._use("kept", conn)
            lent = await self.seat.take(key, at, again=again)
            if lent is None:
                return await self._make(key)
            lent.unlend()
            again = True
            if self.net.breaks is not None and self.net.breaks.random() < 0.3:  # as the server does it
                self.close(lent)

    async def _make(self, key: Hashable) -> Conn:
        self.net.opened()
        try:
            await asyncio.sleep(0)
        except BaseException:
            self.net.closed()
            self.seat.closed(key)
            raise
        conn = Conn(self, key)
        self.conns.append(conn)
        if self.over:
            self.close(conn)
            raise PoolClosedError("closed meanwhile")
        return self._use("made", conn)

    def _use(self, how: str, conn: Conn) -> Conn:
        conn.idle = False
        conn.uses += 1
        self.got.append((how, conn))
        return conn

    def free(self, conn: Conn) -> None:
        """The request is over, and the connection is kept."""
        conn.idle = True
        if self.seat.cap.crowded:
            self.seat.look()

    def close(self, conn: Conn) -> None:
        """The connection is closed, which takes a turn of the loop."""
        self.conns.remove(conn)
        asyncio.get_running_loop().call_soon(self._closed, conn)

    def _closed(self, conn: Conn) -> None:
        self.net.closed()
        self.seat.closed(conn.key, ordered=conn.ordered)

    async def aclose(self) -> None:
        self.over = True
        self.seat.shut()
        for conn in list(self.conns):
            self.close(conn)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.seat.leave()


class Net:
    """A cap with a client on each loop, and a count of what is open, which never exceeds it."""

    def __init__(self, limit: int, *, patience: float = 0.0) -> None:
        self.cap = ConnectionCap(limit, "the test", patience=patience)
        self.clients = per_loop(lambda: Client(self))
        self.breaks: random.Random | None = None
        self._open: deque[None] = deque()

    @property
    def open(self) -> int:
        return len(self._open)

    def opened(self) -> None:
        self._open.append(None)
        assert self.open <= self.cap.limit

    def closed(self) -> None:
        self._open.pop()

    async def hold(self, key: Hashable = "server") -> Conn:
        return await self.clients().open(key)

    def free(self, conn: Conn) -> None:
        conn.client.free(conn)

    async def use(self, key: Hashable = "server") -> Conn:
        conn = await self.hold(key)
        self.free(conn)
        return conn

    def is_over(self) -> None:
        """Everything is closed, every permit is back, and nobody was forgotten."""
        ledger = self.cap._ledger
        assert self.open == 0
        assert (ledger.free, ledger.waiting, ledger.crowded) == (self.cap.limit, 0, False)
        assert all(not seat._keys for seat in self.cap._seats)


def test_a_limit_below_one_is_refused() -> None:
    """As is what is no number."""
    for limit in (0, -1, True, 1.5, "6"):
        with pytest.raises(ValueError, match="max_connections must be a whole number, at least 1"):
            ConnectionCap(limit, "the test")  # type: ignore[arg-type]


def test_a_permit_comes_at_once_while_there_are_any(left: TestLoop, right: TestLoop) -> None:
    """All loops take them from one number."""
    net = Net(2)
    left.run(net.hold)
    right.run(net.hold)
    assert (net.cap.size, net.cap.waiting) == (2, 0)
    waiter = right.spawn(net.hold)
    right.wait_all_blocked()
    assert net.cap.waiting == 1
    assert not waiter.done()
    assert "2/2 open, 1 waiting" in repr(net.cap)
    waiter.cancel()


def test_an_idle_connection_of_another_loop_is_closed_for_who_waits(left: TestLoop, right: TestLoop) -> None:
    """Six that lie idle on one loop starve nobody on another, and no more are closed than are wanted."""
    net = Net(6)
    held = [left.run(net.hold) for _ in range(6)]
    for conn in held:
        left.run(net.free, conn)
    assert right.run(net.use) not in held
    assert net.open == 6
    assert len(held[0].client.conns) == 5


def test_an_idle_connection_to_another_server_is_closed_for_who_waits(left: TestLoop) -> None:
    """Also on the loop of the waiter itself."""
    net = Net(1)
    conn = left.run(net.use, "here")
    assert left.run(net.use, "there") is not conn
    assert net.open == 1


def test_a_waiter_takes_what_comes_free_on_its_loop_for_its_server(left: TestLoop) -> None:
    """As it is: nothing is closed or made."""
    net = Net(1)
    conn = left.run(net.hold)
    waiter = left.spawn(net.hold)
    left.wait_all_blocked()
    left.run(net.free, conn)
    assert waiter.result(PATIENCE) is conn


def test_what_comes_free_goes_to_who_waited_longest(left: TestLoop, right: TestLoop) -> None:
    """Over all loops, where there is no patience: the loop that has it closes it for the other."""
    net = Net(1)
    conn = left.run(net.hold)
    first = right.spawn(net.hold)
    right.wait_all_blocked()
    second = left.spawn(net.hold)
    left.wait_all_blocked()
    left.run(net.free, conn)
    assert first.result(PATIENCE) is not conn
    assert not second.done()
    right.run(net.free, first.result())
    assert second.result(PATIENCE).client is conn.client


def test_with_patience_a_loop_serves_its_own_first(left: TestLoop, right: TestLoop) -> None:
    """One that came at most so much later than the other takes the connection of its loop as it is."""
    net = Net(1, patience=60.0)
    conn = left.run(net.hold)
    first = right.spawn(net.hold)
    right.wait_all_blocked()
    second = left.spawn(net.hold)
    left.wait_all_blocked()
    left.run(net.free, conn)
    assert second.result(PATIENCE) is conn
    assert not first.done()
    first.cancel()


def test_a_young_connection_is_kept_for_the_patience_and_no_longer(left: TestLoop, right: TestLoop) -> None:
    """Then the timer gives it up for who waits elsewhere, though nothing else happens."""
    net = Net(1, patience=0.05)
    conn = left.run(net.use)
    assert right.run(net.hold) is not conn
    assert time.monotonic() - conn.since >= 0.05


def test_newcomers_stand_behind_who_waits_on_their_loop(left: TestLoop) -> None:
    """What was given to a waiter is not taken by whoever comes before it runs."""
    net = Net(1)
    conn = left.run(net.hold)
    order: list[str] = []

    async def use(name: str) -> None:
        got = await net.hold()
        order.append(name)
        net.free(got)

    waiter = left.spawn(use, "waiter")
    left.wait_all_blocked()

    async def free_and_come() -> None:
        net.free(conn)
        await use("newcomer")

    newcomer = left.spawn(free_and_come)
    waiter.result(PATIENCE)
    newcomer.result(PATIENCE)
    assert order == ["waiter", "newcomer"]


def test_a_cancelled_waiter_takes_nothing(left: TestLoop, right: TestLoop) -> None:
    """The next in line is served."""
    net = Net(1)
    conn = left.run(net.hold)
    doomed = right.spawn(net.hold)
    right.wait_all_blocked()
    next_one = right.spawn(net.hold)
    right.wait_all_blocked()
    doomed.cancel()
    right.wait_all_blocked()
    assert net.cap.waiting == 1
    left.run(net.free, conn)
    assert next_one.result(PATIENCE) is not conn


@pytest.mark.parametrize("cancelled_first", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_waiter_that_is_cancelled_as_it_is_served(
    left: TestLoop, right: TestLoop, cancelled_first: bool, elsewhere: bool
) -> None:
    """The permit, or the connection, that was on its way to it goes to the next."""
    net = Net(1)
    conn = left.run(net.hold)
    doomed = (right if elsewhere else left).spawn(net.hold)
    left.wait_all_blocked()
    right.wait_all_blocked()
    next_one = left.spawn(net.hold)
    left.wait_all_blocked()

    async def act() -> None:
        if cancelled_first:
            doomed.cancel()
            net.free(conn)
        else:
            net.free(conn)
            doomed.cancel()

    with right.paused():
        left.run(act)
        left.wait_all_blocked()
    with pytest.raises(asyncio.CancelledError):
        doomed.result(PATIENCE)
    assert next_one.result(PATIENCE).client is conn.client


def test_a_coroutine_that_is_dropped_while_it_waits_takes_nothing(left: TestLoop) -> None:
    """Closed on another thread, too: the word is posted to its loop."""
    net = Net(1)
    conn = left.run(net.hold)
    coro = net.hold()

    async def begin() -> None:
        coro.send(None)

    left.run(begin)
    assert net.cap.waiting == 1
    coro.close()
    left.wait_all_blocked()
    assert net.cap.waiting == 0
    left.run(net.free, conn)


def test_a_closed_client_has_nobody_wait(left: TestLoop, right: TestLoop) -> None:
    """They are told, the permits are free, and nobody may come any more."""
    net = Net(1)
    held = left.run(net.hold)
    waiters = [left.spawn(net.hold) for _ in range(3)]
    left.wait_all_blocked()
    client = left.run(net.clients)
    right.run(net.clients.aclose)
    for waiter in waiters:
        with pytest.raises(PoolClosedError, match="the test was closed while this waited for a connection"):
            waiter.result(PATIENCE)
    with pytest.raises(PoolClosedError, match="the test is closed on 'left'"):
        left.run(client.open)
    assert held.client.conns == []
    net.is_over()


def test_a_loop_that_dies_gives_its_permits_back(left: TestLoop) -> None:
    """With those who waited there: a bare ``loop.close()`` closes nothing."""
    net = Net(2)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(net.hold())
    loop.run_until_complete(net.hold())
    waiter = left.spawn(net.hold)
    left.wait_all_blocked()
    net._open.clear()  # nobody does it on that loop
    loop.close()
    waiter.result(PATIENCE)
    assert net.cap.size == 1


def test_a_loop_that_dies_with_a_grant_on_its_way_gives_it_back(left: TestLoop) -> None:
    """A permit was granted for its waiter, which will never hear of it."""
    net = Net(1)
    loop = asyncio.new_event_loop()
    conn = left.run(net.hold)

    async def begin() -> None:
        coro = net.hold()
        coro.send(None)
        waiting.append(coro)

    waiting: list[object] = []
    loop.run_until_complete(begin())
    left.run(conn.client.close, conn)
    left.wait_all_blocked()
    assert net.cap.size == 1
    loop.close()
    until(lambda: net.cap.size == 0)
    waiting.clear()
    left.run(net.hold)


def test_a_permit_may_be_given_back_by_a_finaliser_that_interrupts_who_has_the_lock(left: TestLoop) -> None:
    """It waits for nothing; whoever has the lock sees to it."""
    net = Net(1)
    conn = left.run(net.hold)
    waiter = left.spawn(net.hold, "elsewhere")
    left.wait_all_blocked()
    with net.cap._lock:  # as if in the middle of apply()
        conn.client.seat.closed(conn.key)
        assert net.cap.size == 1
    conn.client.conns.clear()
    net.closed()
    left.run(net.cap.heard, conn.client.seat)
    assert waiter.result(PATIENCE) is not conn


def test_nobody_is_overtaken_by_much(left: TestLoop, right: TestLoop) -> None:
    """While one loop goes on and on, the other waits for the patience and a request at most."""
    net = Net(2, patience=0.05)
    stop = threading.Event()

    async def go_on() -> None:
        while not stop.is_set():
            conn = await net.hold()
            await asyncio.sleep(0)
            net.free(conn)

    busy = [left.spawn(go_on) for _ in range(4)]
    try:
        waits: list[float] = []
        for _ in range(5):
            begin = time.monotonic()
            conn = right.run(net.hold)
            waits.append(time.monotonic() - begin)
            right.run(conn.client.close, conn)
    finally:
        stop.set()
        for task in busy:
            task.result(PATIENCE)
    assert max(waits) < 5.0, waits  # far from for ever, on any machine


def race(net: Net, rng: random.Random, loops: int, tasks: int, steps: int) -> None:
    """Requests to a few servers from all loops, some of which are cancelled, and connections that break."""
    served = itertools.count()
    seeds = [rng.randrange(1 << 32) for _ in range(tasks)]

    async def client(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(steps):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(mine.choice([None, None, None, 0, 0.0005])):
                    conn = await net.hold(mine.choice(["a", "a", "a", "b"]))
                    try:
                        for _ in range(mine.randrange(3)):
                            await asyncio.sleep(0)
                    finally:
                        if mine.random() < 0.1:
                            conn.client.close(conn)
                        else:
                            net.free(conn)
                    next(served)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), polyloop.TaskGroup() as group:
            for seed in seeds:
                group.create_task(client(seed))
        await net.clients.aclose()

    net.breaks = random.Random(rng.random())
    polyloop.run(main(), loops=loops)
    assert next(served)
    net.is_over()


@pytest.mark.parametrize("patience", [0.0, 0.001, 0.1])
def test_a_race_for_few_permits(rng: random.Random, patience: float) -> None:
    """Never more than there are permits, nobody is forgotten, and all is given back in the end."""
    race(Net(3, patience=patience), rng, loops=4, tasks=24, steps=20)


def test_a_seat_that_was_left_is_forgotten() -> None:
    """With its loop, and every server that it has talked to."""
    cap = ConnectionCap(4, "cap")
    seats: list[weakref.ref[Seat[Conn]]] = []

    async def talk() -> None:
        seat = Seat[Conn](cap, list)
        seats.append(weakref.ref(seat))
        for number in range(3):
            assert await seat.take(("host", number), 0.0) is None
            seat.closed(("host", number))
        seat.leave()

    for _ in range(5):
        asyncio.run(talk())
    gc.collect()
    assert cap._ledger.desks() == []
    assert sum(seat() is not None for seat in seats) <= 1  # the port of the last is still this thread's


@pytest.mark.stress
def test_races_for_few_permits(rng: random.Random, seconds: float) -> None:
    """The same, for longer and with other numbers."""
    until_ = time.monotonic() + seconds
    while time.monotonic() < until_:
        net = Net(rng.randrange(1, 6), patience=rng.choice([0.0, 0.001, 0.01]))
        race(net, rng, loops=rng.randrange(2, 6), tasks=rng.randrange(4, 40), steps=30)


# All orders of a few of them.


def two_loops_share_one(it: Interleaving) -> None:
    """Each gets a connection in the end: the other closes its own, or the permit comes back with that loop."""
    net = Net(1)

    async def use() -> None:
        await net.use()
        await net.use()

    it.coroutine(use)
    it.coroutine(use)
    it.check(net.is_over)


def a_waiter_is_cancelled(it: Interleaving) -> None:
    """At any moment: what it was given goes on."""
    net = Net(1)
    used: deque[None] = deque()

    async def use() -> None:
        await net.use()
        used.append(None)

    it.coroutine(use)
    doomed = it.coroutine(use, name="doomed")
    it.thread(doomed.cancel)

    def check() -> None:
        net.is_over()
        assert len(used) == 2 or (doomed.cancelled() and used)

    it.check(check)


def two_on_a_loop_and_one_elsewhere(it: Interleaving) -> None:
    """A connection is lent, or closed for the other, whoever comes first."""
    net = Net(1)

    async def two() -> None:
        await asyncio.gather(net.use(), net.use())

    async def one() -> None:
        await net.use()

    it.coroutine(two)
    it.coroutine(one)
    it.check(net.is_over)


def a_patient_loop_shares_too(it: Interleaving) -> None:
    """When the patience is over: by its timer."""
    net = Net(1, patience=0.1)

    async def use() -> None:
        await net.use()

    it.coroutine(use)
    it.coroutine(use)
    it.check(net.is_over)


def a_client_is_closed(it: Interleaving) -> None:
    """While others come: they get a connection, or are told."""
    net = Net(1)

    async def use() -> None:
        with contextlib.suppress(PoolClosedError):
            await net.use()

    async def use_and_close() -> None:
        await use()
        await net.clients.aclose()

    it.coroutine(use_and_close)
    it.coroutine(use)
    it.check(net.is_over)


SCENARIOS: dict[str, Callable[[Interleaving], None]] = {
    scenario.__name__: scenario
    for scenario in (
        two_loops_share_one,
        a_waiter_is_cancelled,
        two_on_a_loop_and_one_elsewhere,
        a_patient_loop_shares_too,
        a_client_is_closed,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_few_requests_in_any_order(name: str) -> None:
    """With one preemption, as many orders as a moment allows."""
    explore(SCENARIOS[name], preemptions=1, schedules=120)


@pytest.mark.stress
def test_requests_in_many_orders(seed: int, seconds: float) -> None:
    """The same for longer, with more preemptions, and at random."""
    explore_for_longer(SCENARIOS, seed, seconds)
