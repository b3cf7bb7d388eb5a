"""What holds for every HTTP client with one cap for all loops, whatever client it is."""

import asyncio
import contextlib
import gc
import random
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import FLAVOURS, Flavour
from tests.helpers import until
from tests.pools.http_site import Site

import polyloop
from polyloop.pools import ForeignLoopError, PoolClosedError
from polyloop.testing import TestLoop

PATIENCE = 10.0


class Driver:
    """One kind of client, for the tests below: what it calls its things."""

    #: What a request raises whose connection the server has closed, or could not be made.
    broken: type[Exception]
    refused: type[Exception]

    def make(self, max_connections: int, tls: ssl.SSLContext | None = None) -> Any:
        """A client."""
        raise NotImplementedError

    async def get(self, client: Any, url: str) -> bytes:
        """The body of an answer."""
        raise NotImplementedError

    async def begin(self, client: Any, url: str) -> Any:
        """A response whose body was not read."""
        raise NotImplementedError

    async def read(self, response: Any) -> bytes:
        """The body."""
        raise NotImplementedError

    async def finish(self, response: Any) -> None:
        """Be done with a response, read or not."""
        raise NotImplementedError

    async def close(self, client: Any) -> None:
        """Close it on all loops."""
        await client.aclose()

    def cap(self, client: Any) -> Any:
        """Its cap."""
        raise NotImplementedError


class HttpRules:
    """Tests; ``driver`` is the fixture of the file ``made_at``, which inherits them."""

    made_at: str

    # Not rloop 0.2: it has no start_tls, and ends the process when a server closes a connection.
    @pytest.fixture(params=[each for each in FLAVOURS if isinstance(each, Flavour)], ids=lambda each: each.name)
    def flavour(self, request: pytest.FixtureRequest) -> Flavour:
        chosen: Flavour = request.param
        reason = chosen.why_not()
        if reason is not None:
            pytest.skip(reason)
        return chosen

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        with Site() as site:
            yield site

    @pytest.fixture
    def four(self, flavour: Flavour) -> Iterator[list[TestLoop]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(TestLoop(f"loop-{n}", loop_factory=flavour.new)) for n in range(4)]

    # The cap

    def test_four_loops_have_never_more_connections_than_the_cap(
        self, driver: Driver, site: Site, four: list[TestLoop]
    ) -> None:
        """Every request is answered, and the server sees six connections at most, most of which are used again."""
        client = driver.make(6)

        async def ask(count: int) -> None:
            for _ in range(count):
                assert await driver.get(client, f"{site.url}/soon") == b"soon"

        for task in [loop.spawn(ask, 10) for loop in four for _ in range(5)]:
            task.result(PATIENCE)
        assert site.peak == 6
        assert len(site.requests) == 200
        assert site.made < 150  # the rest went over connections that were there
        assert driver.cap(client).size == site.open <= 6
        four[0].run(driver.close, client)
        assert driver.cap(client).size == 0
        until(lambda: site.open == 0)

    def test_each_request_gets_its_answer(self, driver: Driver, site: Site) -> None:
        """One client, four loops of a runtime, and no answer that belongs to another."""
        client = driver.make(3)

        async def ask(number: int) -> None:
            assert (await driver.get(client, f"{site.url}/a{number}")).startswith(f"a{number} on ".encode())

        async def main() -> None:
            async with polyloop.TaskGroup() as group:
                for number in range(100):
                    group.create_task(ask(number))
            await driver.close(client)

        polyloop.run(main(), loops=4)
        assert site.peak <= 3
        assert sorted(site.requests) == sorted(f"/a{number}" for number in range(100))

    def test_one_request_after_the_other_uses_one_connection(
        self, driver: Driver, site: Site, any_loop: TestLoop
    ) -> None:
        """As long as it is kept."""
        client = driver.make(6)
        for _ in range(5):
            assert any_loop.run(driver.get, client, f"{site.url}/ok") == b"ok on 1"
        assert driver.cap(client).size == 1
        any_loop.run(driver.close, client)

    def test_idle_connections_of_one_loop_do_not_starve_another(
        self, driver: Driver, site: Site, left: TestLoop, right: TestLoop
    ) -> None:
        """Six are kept on one loop; a request on another closes one of them, and is served."""
        client = driver.make(6)
        self.fill(driver, client, site, left, 6)
        assert site.open == 6
        assert right.run(driver.get, client, f"{site.url}/ok") == b"ok on 7"
        assert (site.peak, site.open) == (6, 6)
        for _ in range(3):  # and it need not be closed for the next
            assert right.run(driver.get, client, f"{site.url}/ok") == b"ok on 7"
        assert site.made == 7
        left.run(driver.close, client)

    @staticmethod
    def fill(driver: Driver, client: Any, site: Site, loop: TestLoop, count: int) -> None:
        """Have so many connections on a loop, idle and older than any patience of the cap."""
        tasks = [loop.spawn(driver.get, client, f"{site.url}/held/fill") for _ in range(count)]
        site.wait_for_held("fill", count)
        HttpRules.outlast_patience(driver, client)
        site.let_go("fill")
        for task in tasks:
            assert task.result(PATIENCE) == b"let go"

    @staticmethod
    def outlast_patience(driver: Driver, client: Any) -> None:
        """Until what is there now is older than the cap's patience."""
        begin = time.monotonic()
        until(lambda: time.monotonic() - begin > driver.cap(client)._ledger.patience)

    def test_idle_connections_to_one_server_do_not_starve_another(
        self, driver: Driver, site: Site, left: TestLoop
    ) -> None:
        """On the same loop, neither."""
        client = driver.make(2)
        self.fill(driver, client, site, left, 2)
        with Site() as other:
            assert left.run(driver.get, client, f"{other.url}/ok") == b"ok on 1"
            assert (site.open, other.open) == (1, 1)
            left.run(driver.close, client)

    def test_who_waits_is_served_when_a_connection_comes_free(
        self, driver: Driver, site: Site, left: TestLoop, right: TestLoop
    ) -> None:
        """On the loop where it does: as it is. On another: it is closed there, and made here."""
        client = driver.make(1)
        for waiter_loop, number in ((left, 1), (right, 2)):
            held = left.spawn(driver.get, client, f"{site.url}/held/one")
            site.wait_for_held("one", 1)
            waiter = waiter_loop.spawn(driver.get, client, f"{site.url}/ok")
            until(lambda: driver.cap(client).waiting == 1)
            assert not waiter.done()
            site.let_go("one")
            held.result(PATIENCE)
            assert waiter.result(PATIENCE) == f"ok on {number}".encode()
        assert site.peak == 1
        left.run(driver.close, client)

    def test_who_waits_longest_is_served_first(self, driver: Driver, site: Site, four: list[TestLoop]) -> None:
        """Whichever loop it is on."""
        client = driver.make(1)
        held = four[0].spawn(driver.get, client, f"{site.url}/held/first")
        site.wait_for_held("first", 1)
        waiters = []
        for number in range(8):
            waiters.append(four[number % 4].spawn(driver.get, client, f"{site.url}/{number}"))
            until(lambda: driver.cap(client).waiting == len(waiters))
            self.outlast_patience(driver, client)
        site.let_go("first")
        held.result(PATIENCE)
        for waiter in waiters:
            waiter.result(PATIENCE)
        assert site.requests[1:] == [f"/{number}" for number in range(8)]
        assert site.peak == 1
        four[0].run(driver.close, client)

    def test_a_waiter_that_is_cancelled_takes_nothing(
        self, driver: Driver, site: Site, left: TestLoop, right: TestLoop
    ) -> None:
        """The next one is served, and no permit is lost."""
        client = driver.make(1)
        held = left.spawn(driver.get, client, f"{site.url}/held/one")
        site.wait_for_held("one", 1)
        doomed = right.spawn(driver.get, client, f"{site.url}/doomed")
        until(lambda: driver.cap(client).waiting == 1)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            doomed.result(PATIENCE)
        until(lambda: driver.cap(client).waiting == 0)
        site.let_go("one")
        held.result(PATIENCE)
        right.run(driver.get, client, f"{site.url}/ok")
        assert "/doomed" not in site.requests
        left.run(driver.close, client)

    # Connections that end

    def test_a_request_that_is_cancelled_gives_its_permit_back(
        self, driver: Driver, site: Site, any_loop: TestLoop
    ) -> None:
        """When its connection is closed."""
        client = driver.make(1)
        doomed = any_loop.spawn(driver.get, client, f"{site.url}/held/one")
        site.wait_for_held("one", 1)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            doomed.result(PATIENCE)
        assert any_loop.run(driver.get, client, f"{site.url}/ok") == b"ok on 2"
        assert site.peak == 1
        any_loop.run(driver.close, client)

    def test_a_response_that_is_dropped_midway_gives_its_permit_back(
        self, driver: Driver, site: Site, any_loop: TestLoop
    ) -> None:
        """Closed with half of its body unread, its connection cannot be used again."""
        client = driver.make(1)

        async def main() -> None:
            await driver.finish(await driver.begin(client, f"{site.url}/half"))
            assert await driver.get(client, f"{site.url}/ok") == b"ok on 2"
            await driver.close(client)

        any_loop.run(main)
        assert site.peak == 1

    @pytest.mark.parametrize("path", ["bye", "rude", "drop", "cut"])
    def test_a_server_that_closes_connections(
        self, driver: Driver, site: Site, four: list[TestLoop], path: str
    ) -> None:
        """With or without notice, before or after its answer: the permit is free, and others are served."""
        client = driver.make(2)

        async def ask() -> None:
            for _ in range(3):
                try:
                    assert await driver.get(client, f"{site.url}/{path}") == path.encode()
                except driver.broken:
                    assert path in {"drop", "cut", "rude"}

        for task in [loop.spawn(ask) for loop in four for _ in range(2)]:
            task.result(PATIENCE)
        for loop in four:
            assert loop.run(driver.get, client, f"{site.url}/ok").startswith(b"ok")
        assert site.peak <= 2
        four[0].run(driver.close, client)

    def test_an_idle_connection_that_the_server_closes_gives_its_permit_back(
        self, driver: Driver, site: Site, any_loop: TestLoop
    ) -> None:
        """At once, though no request is made on its loop."""
        client = driver.make(3)
        self.fill(driver, client, site, any_loop, 3)
        assert driver.cap(client).size == 3
        site.hang_up()
        until(lambda: driver.cap(client).size == 0)
        any_loop.run(driver.close, client)

    def test_a_server_that_is_restarted(self, driver: Driver, site: Site, four: list[TestLoop]) -> None:
        """Connections to the old one are not used any more, and nobody sees an error."""
        client = driver.make(4)
        for loop in four:
            loop.run(driver.get, client, f"{site.url}/ok")
        site.restart()
        until(lambda: driver.cap(client).size == 0)
        for loop in four:
            assert loop.run(driver.get, client, f"{site.url}/ok").startswith(b"ok")
        assert site.peak <= 4
        four[0].run(driver.close, client)

    def test_a_server_that_is_not_there_gives_the_permit_back(
        self, driver: Driver, site: Site, any_loop: TestLoop
    ) -> None:
        """Each attempt fails, and the next one may be made."""
        client = driver.make(1)
        site.stop()
        for _ in range(3):
            with pytest.raises(driver.refused):
                any_loop.run(driver.get, client, f"{site.url}/ok")
        until(lambda: driver.cap(client).size == 0)
        any_loop.run(driver.close, client)

    def test_chaos(self, driver: Driver, site: Site, four: list[TestLoop], rng: random.Random) -> None:
        """Cancelled at any moment, dropped midway, cut off by the server: never over the cap, and no permit lost."""
        client = driver.make(3)
        seeds = [rng.randrange(1 << 32) for _ in range(16)]

        async def ask(seed: int) -> None:
            mine = random.Random(seed)
            for _ in range(12):
                path = mine.choice(["ok", "ok", "soon", "bye", "drop", "cut", "half", "large/100000"])
                with contextlib.suppress(driver.broken, TimeoutError, driver.refused):
                    async with asyncio.timeout(mine.choice([None, 0, 0.0002, 0.001, 0.003])):
                        response = await driver.begin(client, f"{site.url}/{path}")
                        try:
                            if path != "half" and mine.random() < 0.8:
                                await driver.read(response)
                        finally:
                            await driver.finish(response)

        for number, task in enumerate([four[number % 4].spawn(ask, seed) for number, seed in enumerate(seeds)]):
            assert number >= 0
            task.result(PATIENCE)
        until(lambda: driver.cap(client).waiting == 0)
        assert site.peak <= 3
        assert driver.cap(client).size <= 3
        # Every permit can still be had, on any loop, at one time.
        for loop in four[:2]:
            self.fill(driver, client, site, loop, 3)
        assert site.peak <= 3
        four[0].run(driver.close, client)
        assert driver.cap(client).size == 0

    # The end of loops and of the client

    def test_a_loop_that_ends_closes_its_connections(self, driver: Driver, site: Site, flavour: Flavour) -> None:
        """One run after the other on one thread, with one client."""
        client = driver.make(2)

        async def main() -> bytes:
            return await driver.get(client, f"{site.url}/ok")

        for number in (1, 2, 3):
            if flavour.new is None:
                answer = polyloop.run(main(), loops=1)
            else:
                answer = asyncio.run(main(), loop_factory=flavour.new)
            assert answer == f"ok on {number}".encode()
            assert driver.cap(client).size == 0
        until(lambda: site.open == 0)

    @pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
    @pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")
    @pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
    def test_a_loop_that_dies_gives_its_permits_back(self, driver: Driver, site: Site, left: TestLoop) -> None:
        """A bare ``loop.close()`` closes no connection; the cap does not count them any more."""
        client = driver.make(1)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        loop.run_until_complete(driver.get(client, f"{site.url}/ok"))
        waiter = left.spawn(driver.get, client, f"{site.url}/ok")
        until(lambda: driver.cap(client).waiting == 1)
        loop.close()
        assert waiter.result(PATIENCE) == b"ok on 2"
        left.run(driver.close, client)
        gc.collect()

    def test_a_runtime_that_ends_amid_requests_leaves_nothing(self, driver: Driver, site: Site) -> None:
        """They are cancelled, and their connections closed, on all of its loops."""
        client = driver.make(8)

        async def hang() -> None:
            await driver.get(client, f"{site.url}/held/for-ever")

        async def main() -> None:
            runtime = polyloop.current_runtime()
            handles = [runtime.spawn(hang, on=worker) for worker in runtime.workers for _ in range(4)]
            await polyloop.to_thread(site.wait_for_held, "for-ever", 8)
            assert handles

        with contextlib.suppress(asyncio.CancelledError):
            polyloop.run(main(), loops=3)
        assert driver.cap(client).size == 0
        until(lambda: site.open == 0)

    def test_a_closed_client_tells_who_waits(self, driver: Driver, site: Site, left: TestLoop, right: TestLoop) -> None:
        """Closed from another loop, it ends what is under way, and what waits for a connection."""
        client = driver.make(1)
        held = left.spawn(driver.get, client, f"{site.url}/held/one")
        site.wait_for_held("one", 1)
        waiter = left.spawn(driver.get, client, f"{site.url}/ok")
        until(lambda: driver.cap(client).waiting == 1)
        right.run(driver.close, client)
        with pytest.raises(PoolClosedError, match="was closed while this waited for a connection"):
            waiter.result(PATIENCE)
        with pytest.raises(driver.broken):
            held.result(PATIENCE)
        assert driver.cap(client).size == 0
        for loop in (left, right):
            with pytest.raises(RuntimeError):
                loop.run(driver.get, client, f"{site.url}/ok")

    # TLS

    def test_tls_on_all_loops(self, driver: Driver, certificates: Any, four: list[TestLoop]) -> None:
        """One context for all, the cap holds, and connections are used again."""
        with Site(certificates.for_server()) as site:
            client = driver.make(3, certificates.for_client())

            async def ask() -> None:
                for _ in range(5):
                    assert await driver.get(client, f"{site.url}/soon") == b"soon"

            for task in [loop.spawn(ask) for loop in four for _ in range(3)]:
                task.result(PATIENCE)
            assert site.peak <= 3
            four[0].run(driver.close, client)
            assert driver.cap(client).size == 0

    def test_a_server_that_is_not_trusted_gives_the_permit_back(
        self, driver: Driver, certificates: Any, any_loop: TestLoop
    ) -> None:
        """Its connection is closed after the handshake has failed."""
        with Site(certificates.for_server()) as site:
            client = driver.make(1, ssl.create_default_context())
            for _ in range(3):
                with pytest.raises(driver.refused, match="certificate"):
                    any_loop.run(driver.get, client, f"{site.url}/ok")
            until(lambda: driver.cap(client).size == 0)
            any_loop.run(driver.close, client)
            assert site.requests == []

    def test_a_handshake_that_is_cancelled_gives_the_permit_back(
        self, driver: Driver, any_loop: TestLoop, certificates: Any, site: Site
    ) -> None:
        """With a server that does not speak TLS: it waits for more of a request that never comes."""
        client = driver.make(1, certificates.for_client())
        doomed = any_loop.spawn(driver.get, client, f"https://127.0.0.1:{site.port}/ok")
        until(lambda: site.open == 1)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            doomed.result(PATIENCE)
        until(lambda: driver.cap(client).size == 0)
        until(lambda: site.open == 0)
        any_loop.run(driver.close, client)

    # Misuse

    def test_a_response_on_another_loop_is_refused(
        self, driver: Driver, site: Site, left: TestLoop, right: TestLoop
    ) -> None:
        """With the names of both loops; its own can go on."""
        client = driver.make(1)
        response = left.run(driver.begin, client, f"{site.url}/large/1000000")
        with pytest.raises(ForeignLoopError, match=r"belongs to 'left'.* and was used on 'right'") as caught:
            right.run(driver.read, response)
        assert (caught.value.owner, caught.value.user) == ("left", "right")
        assert f"made at {self.made_at}:" in str(caught.value)
        left.run(driver.finish, response)
        assert left.run(driver.get, client, f"{site.url}/ok").startswith(b"ok")
        left.run(driver.close, client)

    def test_a_response_closed_on_another_loop_is_closed_on_its_own(
        self, driver: Driver, site: Site, left: TestLoop, right: TestLoop
    ) -> None:
        """And refused, with both names."""
        client = driver.make(1)
        response = left.run(driver.begin, client, f"{site.url}/half")
        with pytest.raises(ForeignLoopError, match=r"belongs to 'left'.* and was used on 'right'"):
            right.run(driver.finish, response)
        until(lambda: driver.cap(client).size == 0)
        left.run(driver.close, client)

    # Bodies

    def test_large_bodies_arrive_whole(self, driver: Driver, site: Site, any_loop: TestLoop) -> None:
        """Larger than any buffer between."""
        client = driver.make(1)
        body = any_loop.run(driver.get, client, f"{site.url}/large/5000000")
        assert body == bytes(range(256)) * (5000000 // 256)
        any_loop.run(driver.close, client)

    def test_threads_with_loops_of_their_own(self, driver: Driver, site: Site) -> None:
        """No runtime at all: plain threads that call ``asyncio.run``."""
        client = driver.make(2)
        answers: list[bytes] = []

        async def main() -> None:
            for _ in range(5):
                answers.append(await driver.get(client, f"{site.url}/ok"))  # noqa: PERF401

        threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 20
        assert site.peak <= 2
        assert driver.cap(client).size == 0
