"""``per_loop``: one instance for each loop, made there on first use and closed there with it."""

import asyncio
import contextlib
import functools
import gc
import logging
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Self

import pytest
from tests.conftest import Flavour
from tests.helpers import until

import polyloop
from polyloop.pools import AsyncPerLoop, PerLoop, PoolClosedError, per_loop
from polyloop.testing import TestLoop

PATIENCE = 30.0


class Client:
    """What keeps something for one loop; it notes where it was made and closed."""

    made: int
    closed: int | None

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.made = threading.get_ident()
        self.closed = None
        self.closes = 0

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.loop
        self.closed = threading.get_ident()
        self.closes += 1

    def close(self) -> None:
        raise AssertionError("aclose() comes first")


def run_on[T](flavour: Flavour, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a program on one loop of that kind."""
    if flavour.new is None:
        return polyloop.run(main(), loops=1)
    return asyncio.run(main(), loop_factory=flavour.new)


def count(holder: object) -> int:
    """On how many loops it has something."""
    return int(repr(holder).rpartition(" on ")[2].partition(" ")[0])


def test_each_loop_has_one_instance_made_on_its_first_use(left: TestLoop, right: TestLoop) -> None:
    """The second call on a loop gives what the first one made there, and nobody else's."""
    clients = per_loop(Client)
    assert isinstance(clients, PerLoop)
    assert count(clients) == 0
    on_left, on_right = left.run(clients), right.run(clients)
    assert left.run(clients) is on_left
    assert right.run(clients) is on_right
    assert on_left is not on_right
    assert on_left.made == left.worker.ident
    assert on_right.made == right.worker.ident
    assert count(clients) == 2
    left.run(clients.aclose)


def test_an_async_factory_is_awaited(left: TestLoop, right: TestLoop) -> None:
    """Its instances come by awaiting the call, one for each loop."""

    async def make() -> Client:
        await asyncio.sleep(0)
        return Client()

    clients = per_loop(make)
    assert isinstance(clients, AsyncPerLoop)
    on_left, on_right = left.run(clients), right.run(clients)
    assert left.run(clients) is on_left is not on_right
    right.run(clients.aclose)
    assert (on_left.closed, on_right.closed) == (left.worker.ident, right.worker.ident)


def test_first_calls_that_come_at_once_share_one_run_of_an_async_factory(left: TestLoop) -> None:
    """However many tasks of a loop ask before it is made."""
    gate = polyloop.Event()
    made: list[Client] = []

    async def make() -> Client:
        await gate.wait()
        made.append(Client())
        return made[-1]

    clients = per_loop(make)
    callers = [left.spawn(clients) for _ in range(5)]
    left.wait_all_blocked()
    gate.set()
    assert {id(caller.result(PATIENCE)) for caller in callers} == {id(made[0])}
    assert len(made) == 1
    left.run(clients.aclose)


def test_a_cancelled_caller_leaves_the_factory_running(left: TestLoop) -> None:
    """For the others, and for the next."""
    gate = polyloop.Event()

    async def make() -> Client:
        await gate.wait()
        return Client()

    clients = per_loop(make)
    doomed, patient = left.spawn(clients), left.spawn(clients)
    left.wait_all_blocked()
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        doomed.result(PATIENCE)
    gate.set()
    assert patient.result(PATIENCE) is left.run(clients)
    left.run(clients.aclose)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_factory_that_fails_is_tried_again_at_the_next_call(left: TestLoop, asynchronous: bool) -> None:
    """Its error goes to those who asked; nothing of it is kept."""
    failures = [ValueError("one"), ValueError("two")]

    def make() -> Client:
        if failures:
            raise failures.pop(0)
        return Client()

    async def make_async() -> Client:
        await asyncio.sleep(0)
        return make()

    clients: Any = per_loop(make_async) if asynchronous else per_loop(make)
    for text in ("one", "two"):
        with pytest.raises(ValueError, match=text):
            left.run(clients)
    assert left.run(clients) is left.run(clients)
    left.run(clients.aclose)


def test_a_failure_that_nobody_waited_for_is_not_the_next_callers(left: TestLoop) -> None:
    """The factory fails after its only caller was cancelled: the next one starts it anew."""
    gate = polyloop.Event()
    failures = [ValueError("old")]

    async def make() -> Client:
        await gate.wait()
        if failures:
            raise failures.pop()
        return Client()

    clients = per_loop(make)
    doomed = left.spawn(clients)
    left.wait_all_blocked()
    doomed.cancel()
    left.wait_all_blocked()
    gate.set()
    left.wait_all_blocked()
    assert isinstance(left.run(clients), Client)
    left.run(clients.aclose)


def test_an_instance_is_closed_at_the_end_of_its_loop_after_its_tasks(flavour: Flavour) -> None:
    """A task that cleans up when it is cancelled still has a client that works."""
    clients = per_loop(Client)
    seen: list[int | None] = []

    async def worker(client: Client) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(client.closed)
            assert clients() is client

    async def main() -> tuple[Client, asyncio.Task[None]]:
        client = clients()
        task = asyncio.create_task(worker(client))
        await asyncio.sleep(0)
        return client, task

    client, _ = run_on(flavour, main)
    assert seen == [None]
    assert (client.closed, client.closes) == (client.made, 1)
    if flavour.name != "rloop":  # whose end is noticed at the next post
        assert count(clients) == 0
    asyncio.run(clients.aclose())
    assert count(clients) == 0


def test_an_async_instance_is_closed_at_the_end_of_its_loop(flavour: Flavour) -> None:
    """Also one whose factory has not come to its end: that is cancelled."""

    async def make() -> Client:
        return Client()

    ends: list[str] = []

    async def make_for_ever() -> Client:
        try:
            await asyncio.Event().wait()
            raise AssertionError
        finally:
            ends.append("cancelled")

    clients, never = per_loop(make), per_loop(make_for_ever)

    async def main() -> Client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await never()
        return await clients()

    client = run_on(flavour, main)
    assert client.closed == client.made
    assert ends == ["cancelled"]


def test_a_runtime_closes_the_instances_of_all_its_loops() -> None:
    """Each on its own thread."""
    clients = per_loop(Client)

    async def use() -> Client:
        return clients()

    with polyloop.Runtime(loops=4) as runtime:
        made = [runtime.spawn(use, on=worker).result(PATIENCE) for worker in runtime.workers]
        assert len({client.made for client in made}) == 4
    assert [client.closed for client in made] == [client.made for client in made]
    assert count(clients) == 0


def test_aclose_closes_all_instances_each_on_its_loop(left: TestLoop, right: TestLoop) -> None:
    """From whichever loop it is awaited, one with an instance or none; it returns when all is closed."""
    clients = per_loop(Client)
    on_left, on_right = left.run(clients), right.run(clients)
    with TestLoop("third") as third:
        third.run(clients.aclose)
    assert (on_left.closed, on_right.closed) == (left.worker.ident, right.worker.ident)
    assert count(clients) == 0


def test_after_aclose_nothing_is_made(left: TestLoop, right: TestLoop) -> None:
    """Neither where there was an instance nor elsewhere."""
    clients = per_loop(Client)
    left.run(clients)
    left.run(clients.aclose)
    for loop in (left, right):
        with pytest.raises(PoolClosedError, match="is closed; use it before aclose"):
            loop.run(clients)
    left.run(clients.aclose)  # and once more does nothing


def test_two_who_close_it_at_once_both_wait_for_the_end(left: TestLoop, right: TestLoop) -> None:
    """Neither returns while an instance is still being closed; each is closed once."""
    gate = polyloop.Event()
    closes: list[Client] = []

    async def close(client: Client) -> None:
        closes.append(client)
        await gate.wait()

    clients = per_loop(Client, close)
    client = left.run(clients)
    first, second = left.spawn(clients.aclose), right.spawn(clients.aclose)
    left.wait_all_blocked()
    right.wait_all_blocked()
    assert not first.done()
    assert not second.done()
    gate.set()
    first.result(PATIENCE)
    second.result(PATIENCE)
    assert closes == [client]


def test_aclose_cancels_an_async_factory_under_way(left: TestLoop, right: TestLoop) -> None:
    """Those who wait for it are told why; nobody has cancelled them."""
    clients = per_loop(lambda_that_waits)
    caller = left.spawn(clients)
    left.wait_all_blocked()
    right.run(clients.aclose)
    with pytest.raises(PoolClosedError, match="while its instance was being made"):
        caller.result(PATIENCE)


async def lambda_that_waits() -> Client:
    await asyncio.Event().wait()
    raise AssertionError


def test_a_context_manager_closes_it(left: TestLoop) -> None:
    """``async with`` is ``aclose`` at its end."""

    async def main() -> Client:
        async with per_loop(Client) as clients:
            return clients()

    assert left.run(main).closed is not None


def test_a_loop_that_was_closed_without_a_word_is_forgotten(left: TestLoop) -> None:
    """A bare ``loop.close()`` has nothing closed on it, and ``aclose`` does not wait for it."""
    clients = per_loop(Client)

    async def use() -> Client:
        return clients()

    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(use())
    assert count(clients) == 1
    loop.close()
    until(lambda: count(clients) == 0)
    left.run(clients.aclose)
    assert client.closed is None


def test_a_loop_that_is_closed_while_aclose_waits_for_it_ends_the_wait(left: TestLoop) -> None:
    """It has stopped, so it answers nothing; when it is closed, nobody waits for it any more."""
    clients = per_loop(Client)

    async def use() -> Client:
        return clients()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    closing = left.spawn(clients.aclose)
    left.wait_all_blocked()
    assert not closing.done()
    loop.close()
    closing.result(PATIENCE)


def test_a_loop_that_ends_makes_nothing_more() -> None:
    """What is closed with a loop cannot have a new client of it."""
    errors: list[BaseException] = []

    async def close(client: Client) -> None:
        try:
            clients()
        except polyloop.RuntimeClosedError as exc:
            errors.append(exc)

    clients = per_loop(Client, close)

    async def main() -> None:
        clients()

    asyncio.run(main())
    assert "is ending" in str(errors[0])


def test_a_loop_that_ends_makes_nothing_late() -> None:
    """Nor can what is closed after it, though it was not used before."""
    errors: list[BaseException] = []
    clients = per_loop(Client)

    async def late() -> AsyncGenerator[None]:
        try:
            yield
        finally:
            while not client.closes:
                await asyncio.sleep(0)
            try:
                clients()
            except polyloop.RuntimeClosedError as exc:
                errors.append(exc)

    generator = late()

    async def main() -> Client:
        await anext(generator)
        return clients()

    client: Client

    async def outer() -> None:
        nonlocal client
        client = await main()

    asyncio.run(outer())
    assert len(errors) == 1


def test_without_a_loop_the_error_says_so() -> None:
    """As ``asyncio.get_running_loop`` does."""
    clients = per_loop(Client)
    with pytest.raises(RuntimeError, match="no running event loop"):
        clients()


def test_two_runs_on_one_thread_have_an_instance_each(flavour: Flavour) -> None:
    """A loop that takes the place of another gets none of its clients."""
    clients = per_loop(Client)

    async def main() -> Client:
        return clients()

    first, second = run_on(flavour, main), run_on(flavour, main)
    assert first is not second
    assert first.closed
    assert second.closed


def test_what_nobody_refers_to_any_more_is_closed_on_its_loop(left: TestLoop) -> None:
    """A ``per_loop`` that was dropped without ``aclose`` leaves nothing behind, while its loops go on."""
    clients: Any = per_loop(Client)
    client, holder = left.run(clients), weakref.ref(clients)
    del clients
    gc.collect()
    until(lambda: client.closed)
    assert client.closed == left.worker.ident
    left.wait_all_blocked()
    until(lambda: gc.collect() is not None and holder() is None)


@pytest.mark.parametrize("kind", ["aclose", "close", "async close", "neither", "given", "async given"])
def test_how_an_instance_is_closed(left: TestLoop, kind: str) -> None:
    """By the function that was given, else by its own ``aclose`` or ``close``, if it has one."""
    closed: list[object] = []

    class Plain:
        pass

    class Closes:
        def close(self) -> None:
            closed.append(self)

    class ClosesAsync:
        async def close(self) -> None:
            closed.append(self)

    class Acloses(Closes):
        async def aclose(self) -> None:
            closed.append(self)

        def close(self) -> None:
            raise AssertionError

    async def given(value: object) -> None:
        closed.append(value)

    cases: dict[str, tuple[type[Any], Callable[[Any], object] | None]] = {
        "aclose": (Acloses, None),
        "close": (Closes, None),
        "async close": (ClosesAsync, None),
        "neither": (Plain, None),
        "given": (Acloses, closed.append),
        "async given": (Acloses, given),
    }
    factory, close = cases[kind]
    things: PerLoop[Any] = per_loop(factory, close)
    thing = left.run(things)
    left.run(things.aclose)
    assert closed == ([] if kind == "neither" else [thing])


def test_an_instance_that_cannot_be_closed_is_logged_and_holds_nobody_up(
    left: TestLoop, right: TestLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are closed none the less."""
    closed: list[Client] = []

    def close(client: Client) -> None:
        if client.made == left.worker.ident:
            raise ValueError("it is stuck")
        closed.append(client)

    clients = per_loop(Client, close)
    left.run(clients)
    on_right = right.run(clients)
    with caplog.at_level(logging.ERROR, "polyloop"):
        right.run(clients.aclose)
    assert closed == [on_right]
    assert "could not be closed" in caplog.text


class AsyncMaker:
    """An object whose call is an async function."""

    async def __call__(self) -> Client:
        return Client()


class Product(Client):
    """A class whose instances are called with await; the class itself is a plain factory."""

    async def __call__(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("factory", "kind"),
    [
        (AsyncMaker(), AsyncPerLoop),
        (functools.partial(AsyncMaker().__call__), AsyncPerLoop),
        (Product, PerLoop),
        (functools.partial(Client), PerLoop),
    ],
)
def test_what_counts_as_an_async_factory(left: TestLoop, factory: Any, kind: type[Any]) -> None:
    """Async functions, methods and objects, also behind ``functools.partial``; not classes of such objects."""
    clients: Any = per_loop(factory)
    assert type(clients) is kind
    assert isinstance(left.run(clients), Client)
    left.run(clients.aclose)


def test_a_plain_function_that_gives_a_coroutine_is_refused_with_advice(left: TestLoop) -> None:
    """A coroutine can be awaited once, so it is no instance."""
    clients: Any = per_loop(lambda: AsyncMaker()())
    with pytest.raises(TypeError, match="make it with 'async def', and await the call"):
        left.run(clients)
    left.run(clients.aclose)


def test_what_cannot_be_called_is_refused() -> None:
    """At once, with advice."""
    with pytest.raises(TypeError, match="needs a function that makes an instance"):
        per_loop(Client.__init__.__doc__)  # type: ignore[call-overload]


def test_instances_are_made_with_no_variables_of_the_caller(left: TestLoop) -> None:
    """An async factory serves all tasks of the loop, so it does not see the context of the first."""
    import contextvars

    variable = contextvars.ContextVar("variable", default="unset")

    async def make() -> str:
        return variable.get()

    values = per_loop(make)

    async def use() -> str:
        variable.set("mine")
        return await values()

    assert left.run(use) == "unset"
    left.run(values.aclose)


@pytest.mark.parametrize("round_", range(20))
def test_loops_that_begin_to_use_it_while_it_is_closed(left: TestLoop, right: TestLoop, round_: int) -> None:
    """Whoever gets an instance has it closed; whoever comes too late is told."""
    clients = per_loop(Client)
    left.run(clients)
    with right.paused():
        late = right.spawn(_use, clients)
        closing = left.spawn(clients.aclose)
    got = late.result(PATIENCE)
    closing.result(PATIENCE)
    if got is not None:
        until(lambda: got.closed)
    with pytest.raises(PoolClosedError):
        right.run(clients)
    assert count(clients) == 0


async def _use(clients: PerLoop[Client]) -> Client | None:
    try:
        return clients()
    except PoolClosedError:
        return None


class Nested:
    """Made with another instance of the same loop."""

    def __init__(self, inner: Client) -> None:
        self.inner = inner
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        raise AssertionError

    def __exit__(self, *exc: object) -> None:
        raise AssertionError


def test_one_may_be_made_with_another(left: TestLoop) -> None:
    """A factory may ask another ``per_loop`` for its loop's instance."""
    clients = per_loop(Client)
    nested = per_loop(lambda: Nested(clients()))
    assert left.run(nested).inner is left.run(clients)
    left.run(nested.aclose)
    left.run(clients.aclose)
