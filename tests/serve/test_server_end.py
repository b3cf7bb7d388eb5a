"""The end of a server: of its runtime, of a worker, and of itself while clients come. Every connection is counted."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from typing import Any

import pytest
from tests.helpers import until as until_sync
from tests.serve.clients import (
    Client,
    address,
    answer,
    close_all,
    connected,
    counts,
    fate,
    may_bind,
    on_loops,
    plain,
    tally,
    until,
)

from polyloop import Runtime, RuntimeClosedError, WorkerDiedError, start_server, start_unix_server
from polyloop.serve import Server
from polyloop.testing import TestLoop, TestThread


def acceptors() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("polyloop-acceptor")]


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_runtime_that_closes_ends_its_servers(reuse_port: bool, left: TestLoop) -> None:
    """The listening sockets are closed, connections cut, the thread ends, who waits is told, the port is free."""
    with Runtime(loops=4) as runtime:
        server = runtime.run(start_server(answer, "127.0.0.1", 0, reuse_port=reuse_port))
        where = address(server)
        socks = [plain(where) for _ in range(20)]
        assert tally(map(fate, socks)) == {"answered": 20}
        waiting = left.spawn(server.wait_closed)
        assert acceptors()
    waiting.result(30)
    assert all(fate(sock) in ("eof", "reset") for sock in socks)
    for sock in socks:
        sock.close()
    until_sync(lambda: not acceptors())
    assert may_bind(where)
    assert counts(server) == [0] * 4


def test_servers_end_with_polyloop_run() -> None:
    """Nobody closed them; they are closed when ``main`` returns."""

    async def main() -> list[Any]:
        return [address(await start_server(answer, "127.0.0.1", 0, reuse_port=shared)) for shared in (False, True)]

    for where in on_loops(main):
        assert may_bind(where)


def test_a_server_ends_with_a_loop_of_others() -> None:
    """``asyncio.run`` cancels what runs: the server is closed with it."""
    found: list[Any] = []

    async def main() -> None:
        found.append(address(await start_server(answer, "127.0.0.1", 0)))

    asyncio.run(main())
    until_sync(lambda: not acceptors())
    assert may_bind(found[0])


#: Nobody cancels anything, and nobody will run the loop again.
JUST_CLOSED = """
import asyncio, socket, threading, polyloop

async def handle(reader, writer): ...

loop = asyncio.new_event_loop()
server = loop.run_until_complete(polyloop.start_server(handle, "127.0.0.1", 0))
where = server.sockets[0].getsockname()
loop.close()
for thread in threading.enumerate():
    if thread.name.startswith("polyloop-acceptor"):
        thread.join(30)
        assert not thread.is_alive()
with socket.create_server(where):
    print("free")
"""


def test_a_server_ends_with_a_loop_that_is_just_closed() -> None:
    """In a process of its own, since asyncio complains of the tasks that are left."""
    done = subprocess.run([sys.executable, "-c", JUST_CLOSED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "free\n"), done.stderr


def test_a_runtime_that_closes_opens_no_server() -> None:
    """Neither one that is named, nor one that ended; nothing stays bound."""
    runtime = Runtime(loops=2)
    with pytest.raises(RuntimeClosedError, match="cannot start a server"):
        asyncio.run(start_server(answer, "127.0.0.1", 0, runtime=runtime))
    with runtime:
        pass
    with pytest.raises(RuntimeClosedError, match="start a new Runtime"):
        asyncio.run(start_server(answer, "127.0.0.1", 0, runtime=runtime))


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_worker_that_dies_leaves_the_others_serving(reuse_port: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its connections are cut; new ones go to those that live; the server closes as any."""
    with Runtime(loops=3) as runtime:
        server = runtime.run(start_server(answer, "127.0.0.1", 0, reuse_port=reuse_port))
        where = address(server)
        socks = [plain(where) for _ in range(30)]
        assert tally(map(fate, socks)) == {"answered": 30}
        before = counts(server)
        victim = runtime.workers[1]
        victim.loop.call_soon_threadsafe(victim.loop.stop)
        until_sync(lambda: counts(server)[1] == 0 and not victim.alive)
        until_sync(lambda: 1 in server._acceptor._left)
        more = [plain(where) for _ in range(20)]
        assert tally(map(fate, more)) == {"answered": 20}
        after = counts(server)
        assert (after[0] + after[2], after[1]) == (before[0] + before[2] + 20, 0)
        for sock in (*socks, *more):
            sock.close()
        server.close()
        runtime.run(server.wait_closed())
    assert any("died" in record.getMessage() for record in caplog.records)


def test_a_server_whose_workers_all_die_ends() -> None:
    """Who waits for its end, on a loop of his own, is told."""
    with Runtime(loops=2) as runtime, TestLoop("waiter") as waiter:
        server = runtime.run(start_server(answer, "127.0.0.1", 0))
        where = address(server)
        waiting = waiter.spawn(server.wait_closed)
        for worker in runtime.workers:
            worker.loop.call_soon_threadsafe(worker.loop.stop)
        waiting.result(30)
        assert may_bind(where)
        with pytest.raises(WorkerDiedError):
            waiter.run(lambda: start_server(answer, "127.0.0.1", 0, runtime=runtime))


@pytest.mark.parametrize("reuse_port", [False, True])
def test_those_in_the_backlog_are_served_after_a_close(reuse_port: bool) -> None:
    """The kernel has accepted them: they are answered, not reset. The acceptor is held still meanwhile."""

    async def main() -> None:
        server = await start_server(answer, "127.0.0.1", 0, backlog=200, reuse_port=reuse_port)
        with contextlib.ExitStack() as stack:
            if not reuse_port:
                stack.enter_context(acceptor_held(server))
            clients = [await Client.to(address(server)) for _ in range(100)]
            server.close()
        for client in clients:
            await client.ask()
        await close_all(clients)
        await server.wait_closed()

    on_loops(main, loops=4)


@contextlib.contextmanager
def acceptor_held(server: Server) -> Any:
    """Hold the acceptor's thread in a command."""
    reached, go = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go.wait(30)

    server._acceptor.tell(hold)
    assert reached.wait(30)
    try:
        yield
    finally:
        go.set()


def test_of_those_that_wait_for_room_as_many_are_served_as_there_is() -> None:
    """A server that is full when it closes resets the others; those inside stay."""

    async def main() -> None:
        server = await start_server(answer, "127.0.0.1", 0, max_connections=4)
        inside = await connected(address(server), 4)
        waiting = [await Client.to(address(server)) for _ in range(6)]
        with acceptor_held(server):
            for client in inside[:2]:
                await client.close()
            await until(lambda: sum(counts(server)) == 2)
            server.close()
        fates = []
        for client in waiting:
            try:
                await client.ask()
                fates.append("answered")
            except (AssertionError, ConnectionError):
                fates.append("reset")
        assert tally(fates) == {"answered": 2, "reset": 4}
        await inside[2].ask()
        await close_all([*inside[2:], *waiting])
        await server.wait_closed()

    on_loops(main)


def come_and_go(where: Any, stop: threading.Event, fates: list[str]) -> None:
    """Connect and ask, again and again."""
    while not stop.is_set():
        try:
            sock = plain(where)
        except ConnectionRefusedError:
            fates.append("refused")
            return
        except (ConnectionError, FileNotFoundError) as exc:
            fates.append("reset" if isinstance(exc, ConnectionError) else "refused")
            continue
        with sock:
            fates.append(fate(sock))


@pytest.mark.parametrize("kind", ["tcp", "reuse_port", "unix"])
def test_a_close_in_a_burst_of_connections(kind: str, tmp_path: Any) -> None:
    """Whoever connected is answered, or reset before an answer began; none hangs, and those accepted are the answered.

    Between the acceptor's last look at the backlog and the close the kernel accepts for a moment: those it resets. A
    unix socket has no such moment, since its file goes first.
    """
    resets = 0
    with Runtime(loops=2) as runtime:
        for number in range(10):
            path = str(tmp_path / f"{number}.sock")
            if kind == "unix":
                server = runtime.run(start_unix_server(answer, path))
            else:
                server = runtime.run(start_server(answer, "127.0.0.1", 0, reuse_port=kind == "reuse_port"))
            fates: list[str] = []
            stop = threading.Event()
            threads = [TestThread(come_and_go, address(server), stop, fates) for _ in range(4)]
            until_sync(lambda: len(fates) > 40)  # noqa: B023 - waited for here
            server.close()
            runtime.run(server.wait_closed())
            stop.set()
            for thread in threads:
                thread.result()
            found = tally(fates)
            assert set(found) <= {"answered", "reset", "refused", "eof"}
            assert found["answered"] == sum(load.accepted for load in server.loads)
            resets += found.get("reset", 0) + found.get("eof", 0)
    if kind == "unix":
        assert resets == 0


def test_a_worker_that_is_stuck_does_not_hold_up_the_end() -> None:
    """A handler blocks its thread beyond the runtime's patience: the server ends, and its port is free."""
    go = threading.Event()
    inside = threading.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside.set()
        go.wait(30)
        writer.close()

    runtime = Runtime(loops=2, shutdown_timeout=0.1).start()
    servers = [
        runtime.run(start_server(handle, "127.0.0.1", 0, reuse_port=shared, hung_after=None))
        for shared in (False, True)
    ]
    where = [address(server) for server in servers]
    try:
        with plain(where[0]):
            assert inside.wait(30)
            assert not runtime.close().clean
            for server in servers:
                until_sync(server._acceptor.ended.done)
            assert [may_bind(one) for one in where] == [True, True]
    finally:
        go.set()


def _break(server: Server) -> None:
    """Have the acceptor's thread fail."""

    def fail() -> None:
        raise LookupError("of the test")

    server._acceptor.tell(fail)


@pytest.mark.parametrize("reuse_port", [False, True])
def test_an_acceptor_that_fails_is_heard_of(reuse_port: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The server serves no more and says so; its port is free; open connections go on; whoever awaits it is told."""
    with Runtime(loops=2) as runtime, TestLoop("waiter") as waiter:
        server = runtime.run(start_server(answer, "127.0.0.1", 0, reuse_port=reuse_port))
        where = address(server)
        forever = waiter.spawn(server.serve_forever)
        waiter.spawn(asyncio.sleep, 0).result(30)  # that has begun
        with plain(where) as sock:
            assert fate(sock) == "answered"
            assert not server._failed.done()
            _break(server)
            with pytest.raises(RuntimeError, match="accepts no more: its acceptor has failed") as caught:
                forever.result(30)
            assert isinstance(caught.value.__cause__, LookupError)
            assert server._failed.done()
            assert not server.is_serving()
            assert server.sockets == ()
            until_sync(lambda: not acceptors() and may_bind(where))
            sock.sendall(b"hello\n")
            assert fate(sock) == "answered"
        server.close()
        runtime.run(server.wait_closed())
        until_sync(lambda: any("failed; the server accepts no more" in one.getMessage() for one in caplog.records))
    [record] = [one for one in caplog.records if "failed; the server" in one.getMessage()]
    assert record.threadName == "polyloop-report"
    assert record.exc_info is not None


def test_a_server_that_closes_has_not_failed() -> None:
    """``_failed`` is for errors only."""
    with Runtime(loops=2) as runtime:
        server = runtime.run(start_server(answer, "127.0.0.1", 0))
        server.close()
        runtime.run(server.wait_closed())
        assert not server._failed.done()


#: In a process of its own, since what a broken loop leaves behind warns when it is collected.
BROKEN_LOOP = """
import polyloop
from tests.helpers import until
from tests.serve.clients import address, answer, fate, plain

def broken():
    raise LookupError

with polyloop.Runtime(loops=2) as runtime:
    server = runtime.run(polyloop.start_server(answer, "127.0.0.1", 0, hung_after=None))
    socks = [plain(address(server)) for _ in range(4)]
    assert [fate(sock) for sock in socks] == ["answered"] * 4
    held = list(server._stations[1]._transports.values())  # else a garbage collection might close them
    victim = runtime.workers[1].loop
    victim._run_once = broken
    victim.call_soon_threadsafe(int)
    until(lambda: 1 in server._acceptor._left)
    ended = []
    for sock in socks:
        sock.settimeout(10)
        try:
            sock.sendall(b"more\\n")
            ended.append(fate(sock))
        except ConnectionError:
            ended.append("reset")
        sock.close()
    server.close()
    runtime.run(server.wait_closed())
    assert len(held) == 2
    print(ended.count("answered"), len(ended))
"""


def test_clients_of_a_loop_that_broke_hear_of_it() -> None:
    """Its task cannot cut them any more; they get the end of the stream while the process lives on."""
    done = subprocess.run([sys.executable, "-c", BROKEN_LOOP], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "2 4\n", done.stderr


def test_two_that_bind_one_port_at_once() -> None:
    """The second to listen is told which address, and what to do."""

    async def main() -> None:
        first = await start_server(answer, "127.0.0.1", 0, start_serving=False)
        where = address(first)
        second = await start_server(answer, *where, start_serving=False)
        async with first:
            await first.start_serving()
            with pytest.raises(OSError, match=rf"127\.0\.0\.1:{where[1]}: address already in use; somebody else"):
                await second.start_serving()

    on_loops(main)
