"""Every interleaving of the acceptor's thread with those who close connections, servers and loops.

The acceptor's own code runs, on a thread of the model: its lock, its deques, its waker and its ``select`` stop before
each access. Its listening socket is a list of clients, and its stations note what they get. Proved, for the number of
threads of each test: no wake-up is lost (a client that waits for room gets in when somebody leaves), what the kernel
has accepted is handed over before the doors are closed, every connection is adopted or given back, once, and the
acceptor ends when the last station has.
"""

import selectors
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.explorer import Deque, Lock, Run, explore

from polyloop.serve import _acceptor
from polyloop.serve._acceptor import Acceptor
from polyloop.serve._balance import Balance
from polyloop.serve._pulse import Pulse

type Model = Callable[[Run], None]


class Bell:
    """The acceptor's waker; a write after its end is an error, where the kernel would hit another file."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.count = 0
        self.closed = False

    def fileno(self) -> str:
        return "waker"

    def wake(self) -> None:
        self.run.step("waker.wake")
        assert not self.closed, "a waker was written to after it was closed"
        self.count += 1

    def drain(self) -> None:
        self.run.step("waker.drain")
        self.count = 0

    def close(self) -> None:
        self.run.step("waker.close")
        self.closed = True


class Listening:
    """A listening socket: clients in its backlog, until it is closed."""

    def __init__(self, run: Run, waiting: int) -> None:
        self.run = run
        self.waiting = waiting
        self.closed = False
        self.reset = 0  # clients that were in the backlog at the close
        self.sock = self
        self.number = 0

    def connect(self) -> None:
        self.run.step("connect")
        if not self.closed:
            self.waiting += 1

    def remove_file(self) -> None:
        """It has none."""

    def close(self) -> None:
        self.run.step("listener.close")
        self.closed = True
        self.reset, self.waiting = self.waiting, 0


class Connection:
    """What is accepted: told of once when it ends, like the real one."""

    def __init__(self, run: Run, on_close: Callable[["Connection"], object]) -> None:
        self.run = run
        self.on_close = on_close
        self.open = True
        self.held = False

    def close(self) -> None:
        assert self.open, "closed twice"
        self.open = False
        self.on_close(self)

    drop = close


class Reading:
    """The acceptor's selector over both; blocks within the model."""

    def __init__(self, run: Run, acceptor: "Modelled") -> None:
        self.run = run
        self.acceptor = acceptor
        self.keys: dict[Any, Any] = {}

    def register(self, thing: Any, events: int, data: Any = None) -> None:
        assert data is None or not data.closed
        self.keys[thing] = data

    def unregister(self, thing: Any) -> None:
        del self.keys[thing]

    def _ready(self) -> list[Any]:
        waker: Any = self.acceptor._waker
        found = [None] if waker.count else []
        return found + [data for data in self.keys.values() if data is not None and data.waiting]

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout == 0:
            self.run.step("poll")
        else:
            assert timeout is None
            self.run.wait_until(lambda: bool(self._ready()), "select")
        return [(SimpleNamespace(data=data), selectors.EVENT_READ) for data in self._ready()]

    def close(self) -> None:
        self.keys.clear()


class Office:
    """A station: what is posted to its loop waits for it in its order."""

    def __init__(self, run: Run, index: int, chief: Acceptor, *, accepts: bool = True) -> None:
        self.run = run
        self.index = index
        self.chief = chief
        self.pulse = Pulse(0.0)
        self.port: Any = self
        self.posted: deque[Callable[[], object]] = Deque(run, f"posts of {index}")
        self.inside: list[Connection] = []
        self.adopted = 0
        self.dropped = 0
        self.leaving = False
        self.ended = False
        self.listeners: list[Any] = []

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        self.posted.append(lambda: fn(*args))

    def adopt(self, sock: Connection) -> None:
        if self.ended:
            self.dropped += 1
            sock.drop()
            return
        self.adopted += 1
        self.inside.append(sock)

    def gone(self, sock: Connection) -> None:
        self.chief.departed(self.index)
        if sock in self.inside:
            self.inside.remove(sock)

    def leave(self, take_waiting: bool) -> None:
        self.leaving = True

    def look(self) -> None:
        """Run what was posted, when something was."""
        self.run.wait_until(lambda: deque.__len__(self.posted) > 0, f"loop {self.index} sleeps")
        while deque.__len__(self.posted):
            self.posted.popleft()()

    def end(self) -> None:
        """As its task does: from now on it drops what comes, and tells."""
        self.ended = True
        for sock in list(self.inside):
            sock.close()
        self.chief.station_ended(self.index)

    def drain(self) -> None:
        """What comes after its end; the loop runs on."""
        while deque.__len__(self.posted):
            deque.popleft(self.posted)()


class Modelled(Acceptor):
    """The acceptor with the model's parts."""

    def __init__(self, run: Run, loops: int, *, most: int | None = None, when_full: Any = "wait") -> None:
        super().__init__("acceptor", Balance(loops, most=most), when_full=when_full, patience=None)
        self.offices = [Office(run, index, self) for index in range(loops)]
        self.stations = self.offices  # type: ignore[assignment]
        self._lock: Any = Lock(run)
        self._commands = Deque(run, "commands")
        self._departures._gone = Deque(run, "departures")
        self._departures._tokens = Deque(run, "tokens")
        self._waker: Any = Bell(run)
        self._selector: Any = Reading(run, self)
        self._selector.register(self._waker.fileno(), selectors.EVENT_READ)

    def serve(self, *listeners: Any) -> "Modelled":
        """What the thread does."""
        self._listeners = listeners
        return self


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of the model."""

    def accept(listener: Listening, on_close: Any) -> Any:
        listener.run.step("accept")
        if not listener.waiting:
            return "none"
        listener.waiting -= 1
        return Connection(listener.run, on_close)

    monkeypatch.setattr(_acceptor, "accept", accept)


def leave_one_by_one(office: Office, count: int) -> None:
    """A loop: it takes over ``count`` connections and closes each; then it ends."""
    for _ in range(count):
        while not office.inside:
            office.look()
        office.inside[0].close()


def finish(office: Office) -> None:
    """A loop goes on until its server has closed, and ends when its last connection has gone."""
    while not office.leaving:
        office.look()
        for sock in list(office.inside):
            sock.close()
    office.end()


@pytest.mark.parametrize(("clients", "most"), [(2, 1), (3, 1), (3, 2)])
def test_a_departure_lets_the_next_one_in(clients: int, most: int) -> None:
    """The server is full, and sleeps without a limit: whoever leaves wakes it, in every order of the two."""

    def scenario(run: Run) -> None:
        listening = Listening(run, clients)
        acceptor = Modelled(run, 1, most=most).serve(listening)
        [office] = acceptor.offices

        def loop() -> None:
            leave_one_by_one(office, clients)
            acceptor.close_doors()
            finish(office)

        def check() -> None:
            assert (office.adopted, listening.reset, office.inside) == (clients, 0, [])
            assert acceptor.ended.done()

        run.thread(acceptor._main)
        run.thread(loop)
        run.check(check)

    assert explore(scenario, preemptions=2, limit=200_000) > 100


def test_two_loops_leave_at_once() -> None:
    """One wake is enough for both; neither place is forgotten."""

    def scenario(run: Run) -> None:
        listening = Listening(run, 3)
        acceptor = Modelled(run, 2, most=1).serve(listening)
        left = [2, 1]  # it goes round

        def loop(office: Office) -> None:
            leave_one_by_one(office, left[office.index])
            if office.index == 0:
                acceptor.close_doors()
            finish(office)

        def check() -> None:
            assert [office.adopted for office in acceptor.offices] == left
            assert acceptor.ended.done()

        run.thread(acceptor._main)
        for office in acceptor.offices:
            run.thread(lambda office=office: loop(office))  # type: ignore[misc]
        run.check(check)

    assert explore(scenario, preemptions=1, limit=50_000) > 100


def test_a_close_against_those_who_come() -> None:
    """Whoever came before the close is handed over first; each is adopted, or reset with the backlog; none is lost."""

    def scenario(run: Run) -> None:
        listening = Listening(run, 1)
        acceptor = Modelled(run, 1).serve(listening)
        [office] = acceptor.offices
        before: list[int] = []

        def close() -> None:
            before.append(office.adopted + listening.waiting)
            acceptor.close_doors()

        def check() -> None:
            assert office.adopted + listening.reset >= before[0]
            assert office.adopted >= 1
            assert acceptor.doors_closed.done()
            assert acceptor.ended.done()
            assert not office.posted

        run.thread(acceptor._main)
        run.thread(close)
        run.thread(listening.connect)
        run.thread(lambda: finish(office))
        run.check(check)

    assert explore(scenario, preemptions=1, limit=50_000) > 100


@pytest.mark.parametrize("loops", [1, 2])
def test_a_station_ends_while_it_is_given_connections(loops: int) -> None:
    """It adopts, or drops what comes after its end; nothing stays between, and the acceptor ends with the last."""

    def scenario(run: Run) -> None:
        listening = Listening(run, 2)
        acceptor = Modelled(run, loops).serve(listening)
        first = acceptor.offices[0]

        def check() -> None:
            for office in acceptor.offices:
                office.drain()
                assert office.inside == []
            taken = sum(office.adopted + office.dropped for office in acceptor.offices)
            assert taken + listening.reset == 2
            assert loops == 1 or listening.reset == 0
            assert acceptor.ended.done()

        run.thread(acceptor._main)
        run.thread(first.end)
        for office in acceptor.offices[1:]:

            def lives(office: Office = office) -> None:
                run.wait_until(lambda: listening.waiting == 0, "all are taken")
                acceptor.close_doors()
                finish(office)

            run.thread(lives)
        run.check(check)

    assert explore(scenario, preemptions=1, limit=50_000) > 10


def test_two_close_and_one_ends() -> None:
    """Commands from several threads, one of which comes after the end: nobody writes to a waker that is closed."""

    def scenario(run: Run) -> None:
        acceptor = Modelled(run, 1).serve(Listening(run, 0))
        [office] = acceptor.offices
        told: list[bool] = []

        def close_and_tell() -> None:
            acceptor.close_doors()
            told.append(acceptor.tell(acceptor.name.title))

        run.thread(acceptor._main)
        run.thread(close_and_tell)
        run.thread(acceptor.close_doors)
        run.thread(lambda: finish(office))

        def check() -> None:
            assert len(told) == 1
            assert acceptor.ended.done()
            assert not acceptor.tell(lambda: None)

        run.check(check)

    assert explore(scenario, preemptions=1, limit=50_000) > 100


def test_the_protocol_of_departures_needs_its_order() -> None:
    """With the look before the token, a departure in between wakes nobody: the test would find it."""

    def scenario(run: Run) -> None:
        acceptor = Modelled(run, 1, most=1).serve(Listening(run, 2))
        [office] = acceptor.offices
        departures = acceptor._departures

        def wait() -> bool:
            if departures._gone:
                return False
            departures._tokens.append(None)
            return True

        departures.wait = wait  # type: ignore[method-assign]

        def loop() -> None:
            leave_one_by_one(office, 2)
            acceptor.close_doors()
            finish(office)

        run.thread(acceptor._main)
        run.thread(loop)

    with pytest.raises(AssertionError, match="a wake-up was lost"):
        explore(scenario, preemptions=2, limit=200_000)
