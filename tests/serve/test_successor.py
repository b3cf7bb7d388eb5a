"""Rolling restarts, with real processes: each hands its listening sockets to the next."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from polyloop import ServerStartError
from polyloop.serve import _successor
from polyloop.serve._successor import Successor, generation, handed_over, report_ready

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sockets are handed over on unix only")

#: A server that answers each connection with its pid and generation, and on SIGUSR2 hands over as `serve` does.
SERVER = """
import asyncio, contextlib, json, os, signal, socket, sys
from polyloop import ServerStartError
from polyloop.serve._successor import Successor, generation, handed_over, report_ready

async def main():
    sockets = handed_over()
    if not sockets:
        family, address = json.loads(sys.argv[1])
        sock = socket.socket(getattr(socket, family))
        sock.bind(tuple(address) if isinstance(address, list) else address)
        sock.listen(100)
        sockets = [sock]
    if os.path.exists("broken"):
        sys.exit(7)
    if os.path.exists("slow"):
        open("slow-begun", "w").close()
        await asyncio.sleep(600)
    over, tasks = asyncio.Event(), set()
    loop = asyncio.get_running_loop()

    async def answer(connection):
        with connection:
            await loop.sock_recv(connection, 100)
            found = [os.getpid(), generation(), os.listdir("/proc/self/fd"), children()]
            await loop.sock_sendall(connection, json.dumps(found).encode())

    def accept(sock):
        try:
            connection, _ = sock.accept()
        except BlockingIOError:  # the other process was faster
            return
        connection.setblocking(False)
        tasks.add(loop.create_task(answer(connection)))

    def children():
        found = []
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                found += open(f"/proc/self/task/{task}/children").read().split()
        return found

    async def restart():
        successor = None
        try:
            successor = Successor(sockets)
            await successor.ready(float(os.environ.get("PATIENCE", "60")))
        except ServerStartError as exc:
            print(f"failed: {str(exc).replace(str(successor and successor.pid), 'PID')}", flush=True)
        else:
            print("handed over", flush=True)
            over.set()

    loop.add_signal_handler(signal.SIGUSR2, lambda: tasks.add(loop.create_task(restart())))
    loop.add_signal_handler(signal.SIGTERM, over.set)
    for sock in sockets:
        sock.setblocking(False)
        loop.add_reader(sock, accept, sock)
    report_ready()
    print(f"serving {generation()} {os.getpid()} {os.getcwd()}", flush=True)
    await over.wait()
    for sock in sockets:
        loop.remove_reader(sock)
    await asyncio.gather(*tasks)
    print("over", flush=True)

asyncio.run(main())
"""

type Line = Callable[[], str]


class Service:
    """The chain of processes as its starter sees it."""

    def __init__(self, folder: Path, family: str, address: Any, **variables: str) -> None:
        (folder / "server.py").write_text(SERVER)
        self.address = tuple(address) if isinstance(address, list) else address
        self.family = getattr(socket, family)
        environ = {**os.environ, "PWD": str(folder), **variables}
        command = [sys.executable, "server.py", json.dumps([family, address])]
        self.process = subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True)
        self.pids = [self.process.pid]

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def serving(self) -> int:
        """Wait for the next generation and return its number."""
        word, number, pid, _ = self.line().split(maxsplit=3)
        assert word == "serving"
        self.pids.append(int(pid))
        return int(number)

    def ask(self) -> tuple[int, int, list[str], list[str]]:
        with socket.socket(self.family) as sock:
            sock.settimeout(30)
            sock.connect(self.address)
            sock.sendall(b"?\n")
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        pid, number, fds, children = json.loads(answer)
        return pid, number, fds, children

    def restart(self) -> None:
        os.kill(self.pids[-1], signal.SIGUSR2)

    def end(self) -> None:
        for pid in reversed(self.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.read()  # until the last of them has ended
        self.process.stdout.close()
        self.process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(params=["tcp", "unix"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    if sys.platform != "linux":
        pytest.skip("the server of the test looks into /proc")
    tcp = request.param == "tcp"
    made = Service(tmp_path, *(("AF_INET", ["127.0.0.1", free_port()]) if tcp else ("AF_UNIX", str(tmp_path / "sock"))))
    try:
        assert made.serving() == 1
        yield made
    finally:
        made.end()


def test_three_generations_take_over_while_clients_come(service: Service) -> None:
    """No client is refused, and each process leaves when the next one serves."""
    seen: list[int] = []
    stop = threading.Event()
    errors: list[BaseException] = []

    def client() -> None:
        try:
            while not stop.is_set():
                seen.append(service.ask()[1])
        except BaseException as exc:
            errors.append(exc)

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    try:
        for number in (2, 3, 4):
            before = service.pids[-1]
            service.restart()
            lines = [service.line() for _ in range(3)]
            assert sorted(line.split()[0] for line in lines) == ["handed", "over", "serving"]
            serving = next(line for line in lines if line.startswith("serving")).split()
            assert int(serving[1]) == number
            service.pids.append(int(serving[2]))
            assert service.ask()[:2] == (service.pids[-1], number)
            assert before != service.pids[-1]
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert not errors
    assert {1, 2, 3, 4} >= set(seen) > {1}


def test_a_successor_that_fails_leaves_everything_as_it_was(service: Service, tmp_path: Path) -> None:
    """The old process serves on, without a zombie, with the descriptors that it had; and can try again."""
    service.ask()
    _, _, fds, children = service.ask()
    (tmp_path / "broken").touch()
    for _ in range(3):
        service.restart()
        assert service.line() == "failed: process PID ended with exit code 7"
    assert service.ask() == (service.pids[0], 1, fds, children)
    (tmp_path / "broken").unlink()
    service.restart()
    assert {service.line().split()[0] for _ in range(3)} == {"serving", "handed", "over"}
    pid, number, _, _ = service.ask()
    service.pids.append(pid)
    assert number == 2


def test_a_successor_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """The old process serves on."""
    if sys.platform != "linux":
        pytest.skip("the server of the test looks into /proc")
    service = Service(tmp_path, "AF_INET", ["127.0.0.1", free_port()], PATIENCE="0.7")
    try:
        service.serving()
        service.ask()
        _, _, fds, _ = service.ask()
        (tmp_path / "slow").touch()
        service.restart()
        assert service.line() == "failed: process PID did not serve within 0.7 s and was ended"
        wait_until(lambda: service.ask() == (service.pids[0], 1, fds, []))
    finally:
        service.end()


def test_a_new_release_behind_a_symbolic_link_is_found(tmp_path: Path) -> None:
    """The folder is followed by name, not by what it was at the start."""
    if sys.platform != "linux":
        pytest.skip("the server of the test looks into /proc")
    releases = [tmp_path / "one", tmp_path / "two"]
    for release in releases:
        release.mkdir()
    current = tmp_path / "current"
    current.symlink_to(releases[0])
    service = Service(current, "AF_INET", ["127.0.0.1", free_port()])
    try:
        assert service.line().endswith(str(releases[0]))
        current.unlink()
        current.symlink_to(releases[1])
        (releases[1] / "server.py").write_text(SERVER)
        service.restart()
        serving = next(line for line in (service.line() for _ in range(3)) if line.startswith("serving"))
        service.pids.append(int(serving.split()[2]))
        assert serving.endswith(str(releases[1]))
    finally:
        service.end()


def test_the_manager_is_told_of_the_new_main_process(tmp_path: Path) -> None:
    """By the new process, which is believed with NotifyAccess=all, and by the old one, which always is."""
    if sys.platform != "linux":
        pytest.skip("the server of the test looks into /proc")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        address = ["127.0.0.1", free_port()]
        service = Service(tmp_path, "AF_INET", address, NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            service.serving()
            service.restart()
            lines = [service.line() for _ in range(3)]
            pid = next(line for line in lines if line.startswith("serving")).split()[2]
            service.pids.append(int(pid))
            assert manager.recv(1000).decode() == f"MAINPID={pid}\nREADY=1"
            assert manager.recv(1000).decode() == f"MAINPID={pid}"
        finally:
            service.end()


def wait_until(fact: Callable[[], bool]) -> None:
    """Look again and again, for half a minute."""
    import time

    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.01)


# Parts, in this process


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def program(text: str, *args: str) -> list[str]:
    return [sys.executable, "-c", text, *args]


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("pass", "ended with exit code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9"),
    ],
)
def test_a_successor_that_ends_is_told_with_how(listener: socket.socket, text: str, how: str) -> None:
    """Whatever it is: it did not say that it serves."""
    successor: Successor | None = None

    async def main() -> None:
        nonlocal successor
        successor = Successor([listener], program(text))
        await successor.ready(60)

    with pytest.raises(ServerStartError, match=rf"^process \d+ {how}$"):
        asyncio.run(main())
    assert successor is not None
    assert successor._process.returncode is not None  # no zombie
    assert repr(successor) == f"<Successor process {successor.pid}>"


def test_a_wait_that_is_cancelled_ends_the_successor(listener: socket.socket) -> None:
    """The old process is told to stop while the new one starts: both stop."""

    async def main() -> int:
        successor = Successor([listener], program("import time; time.sleep(600)"))
        waiting = asyncio.create_task(successor.ready(60))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await successor._ended

    assert asyncio.run(main()) == -signal.SIGTERM


def test_a_successor_that_ignores_its_end_is_killed(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After some seconds."""
    monkeypatch.setattr(_successor, "_PATIENCE", 0.05)
    mark = tmp_path / "begun"
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    text = f"import signal, sys, time; {ignore}; open(sys.argv[1], 'w'); time.sleep(600)"

    async def main() -> int:
        successor = Successor([listener], program(text, str(mark)))
        waiting = asyncio.create_task(successor.ready(60))
        while not mark.exists():
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await successor._ended

    assert asyncio.run(main()) == -signal.SIGKILL


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("waited_for", [False, True])
def test_the_end_of_a_successor_can_be_waited_for(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ignores: bool, waited_for: bool
) -> None:
    """By a process that ends itself: the threads that would kill a stubborn one end with it."""
    monkeypatch.setattr(_successor, "_PATIENCE", 0.3 if ignores else 30)
    # A thread that sends nothing more, as after the end of the process.
    monkeypatch.setattr(Successor, "_stop", lambda self: self._process.terminate())
    mark = tmp_path / "begun"
    how = "SIG_IGN" if ignores else "SIG_DFL"
    text = f"import signal, sys, time; signal.signal(15, signal.{how}); open(sys.argv[1], 'w'); time.sleep(600)"

    async def main() -> None:
        successor = Successor([listener], program(text, str(mark)))
        waiting = asyncio.create_task(successor.ready(60))
        while not mark.exists():
            await asyncio.sleep(0.01)
        if waited_for:
            waiting.cancel()
            await asyncio.wait([waiting])
        await successor.end()
        assert successor._process.returncode == -(signal.SIGKILL if ignores else signal.SIGTERM)
        with pytest.raises(ProcessLookupError):
            os.kill(successor.pid, 0)
        await successor.end()
        with pytest.raises(asyncio.CancelledError if waited_for else ServerStartError):
            await waiting

    asyncio.run(main())


def test_the_end_of_a_successor_does_not_wait_for_who_has_its_pipe(listener: socket.socket, tmp_path: Path) -> None:
    """A process that it has started, say."""
    mark = tmp_path / "begun"
    text = (
        "import os, subprocess, sys, time, json; fd = json.loads(os.environ['POLYLOOP_HANDOVER'])['ready']\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], pass_fds=[fd])\n"
        "open(sys.argv[1] + '-', 'w').write(str(child.pid)); os.rename(sys.argv[1] + '-', sys.argv[1]); time.sleep(600)"
    )

    async def main() -> None:
        successor = Successor([listener], program(text, str(mark)))
        while not mark.exists():
            await asyncio.sleep(0.01)
        try:
            await successor.end()
            assert successor._process.returncode == -signal.SIGTERM
        finally:
            os.kill(int(mark.read_text()), signal.SIGKILL)
        assert await successor._ended == -signal.SIGTERM

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_successor, "_PATIENCE", 0.5)
        asyncio.run(main())


def test_a_command_that_cannot_be_started_is_an_error_at_once(listener: socket.socket) -> None:
    """And leaves nothing open."""
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        Successor([listener], ["/no-such-program"])


def test_a_server_without_sockets_has_nothing_to_hand_over() -> None:
    """It is closed, or was never started."""
    with pytest.raises(ServerStartError, match="no listening sockets"):
        Successor([])


def test_a_process_that_is_nobodys_successor_has_no_sockets_and_nobody_to_tell() -> None:
    """Which is the usual case."""
    assert handed_over() == []
    assert not report_ready()
    assert generation() == 1


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("3,4", "is not what a predecessor writes; unset it"),
        ('{"sockets": [3]}', "is not what a predecessor writes; unset it"),
        ('{"sockets": [999], "ready": 998, "generation": 2}', "is wrong, so unset it: .*Bad file descriptor"),
    ],
)
def test_a_variable_that_makes_no_sense_is_an_error(monkeypatch: pytest.MonkeyPatch, given: str, reason: str) -> None:
    """It is named with its value."""
    monkeypatch.setenv("POLYLOOP_HANDOVER", given)
    with pytest.raises(ValueError, match=rf"^POLYLOOP_HANDOVER='.*' {reason}"):
        handed_over()


def test_what_systemd_gave_to_this_process_alone_is_not_inherited(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The sockets were opened for this one, and the successor has its own process id."""
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, "1")
    found = tmp_path / "found"
    text = "import json, os, sys; open(sys.argv[1], 'w').write(json.dumps(dict(os.environ)))"

    async def main(commands: Sequence[str]) -> None:
        with pytest.raises(ServerStartError):
            await Successor([listener], commands).ready(60)

    asyncio.run(main(program(text, str(found))))
    variables = json.loads(found.read_text())
    assert {name for name in variables if name.startswith(("LISTEN_", "WATCHDOG_"))} == {"WATCHDOG_USEC"}
    assert json.loads(variables["POLYLOOP_HANDOVER"])["sockets"] == [listener.fileno()]
