"""``serve``: a whole program; on the main thread of a process of its own, and on any other thread."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import until
from tests.serve import apps
from tests.serve.apps import Receive, Scope, Send, routed
from tests.serve.web import PATIENCE, Program, Wire, free_port, listens, request, serving

from polyloop import Runtime, ServerStartError
from polyloop.serve import WebServer, serve
from polyloop.serve._acceptor import Acceptor
from polyloop.testing import TestThread

unix = pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="signals as on unix")


# On any thread


def test_off_the_main_thread_it_leaves_signals_alone() -> None:
    """``on_ready`` gets the server, which any thread may shut down."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with serving(apps.app) as served:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        assert served.get().text == "hello"
        assert served.stop().requests == 1


def test_on_the_main_thread_it_gives_the_signals_back() -> None:
    """As they were before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    report = serve(apps.app, loops=2, port=0, access_log=False, on_ready=lambda server: server.shutdown())
    assert report.clean
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_two_at_once_in_one_process() -> None:
    """On threads of their own, with loops of their own."""
    with serving(apps.app) as one, serving(apps.app) as two:
        assert one.port != two.port
        assert one.get().text == two.get().text == "hello"


def test_an_on_ready_that_fails_ends_the_server() -> None:
    """Its exception is the caller's, after the applications have shut down."""
    events: list[str] = []

    def fail(server: WebServer) -> None:
        raise LookupError("no readiness")

    with pytest.raises(LookupError, match="no readiness"):
        serve(routed(apps.ROUTES, events), loops=2, port=0, access_log=False, on_ready=fail)
    assert sorted(event.split()[0] for event in events) == ["down", "down", "up", "up"]


def test_on_a_thread_that_runs_a_loop_it_refuses() -> None:
    """With the name of what to use there."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="use ASGIServer there"):
            serve(apps.app)

    asyncio.run(main())


def test_a_runtime_of_the_callers_is_refused() -> None:
    """It makes its own."""
    with pytest.raises(ValueError, match=r"ASGIServer\(runtime=...\)"):
        serve(apps.app, runtime=Runtime(loops=1))


def test_what_is_wrong_is_said_before_anything_starts() -> None:
    """An application that is not there, an option that is none, a port that is taken."""
    with pytest.raises(ServerStartError, match="no application"):
        serve("tests.serve.apps:nothing", loops=2)
    with pytest.raises(TypeError, match="prot"):
        serve(apps.app, loops=2, prot=80)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="loops"):
        serve(apps.app, loops=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="somebody else listens"):
            serve(apps.app, loops=2, access_log=False, port=taken.getsockname()[1])


def test_a_signal_in_the_tick_in_which_the_start_ends_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task of the start is done then, and the program has not gone on yet."""
    start = WebServer.start

    async def start_and_be_told(self: WebServer) -> WebServer:
        served = await start(self)
        os.kill(os.getpid(), signal.SIGTERM)  # its handler runs here, the loop's word of it in the next tick
        return served

    monkeypatch.setattr(WebServer, "start", start_and_be_told)
    assert serve(apps.app, loops=2, port=0, access_log=False).clean


def test_an_acceptor_that_fails_ends_the_server_with_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody comes in any more: better that whoever watches the process starts it again."""

    def fail(self: Acceptor) -> None:
        raise LookupError("a fault of ours")

    with serving(apps.app) as served:
        assert served.get().text == "hello"
        monkeypatch.setattr(Acceptor, "_turn", fail)
        until(lambda: served.server.state == "closed")
        report = served.stop()
    assert not report.clean
    assert "accepting failed: LookupError('a fault of ours')" in str(report)


def test_an_application_that_fails_to_start_is_not_hidden_by_one_that_never_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told at once, and the other gets the time of a lifespan."""
    makers = iter([lambda: apps.app, None])

    def factory() -> Any:
        if next(makers) is None:
            raise LookupError("no such table")

        async def never_up(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.Event().wait()

        return never_up

    with pytest.raises(ServerStartError, match="no such table"):
        serve(factory, factory=True, loops=2, port=0, access_log=False, lifespan_timeout=0.2)
    assert "an application did not start on" in caplog.text
    assert "no such table" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("graceful_timeout", None),
        ("lifespan_timeout", -1),
        ("head_timeout", "5"),
        ("hung_after", True),
        ("ssl_handshake_timeout", 0),
        ("health", 1),
        ("backlog", "many"),
        ("port", "http"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_with_its_value(name: str, value: object) -> None:
    """Whatever it is."""
    with pytest.raises(ValueError, match=rf"^{name} must be .*{value!r}"):
        serve(apps.app, **{name: value})  # type: ignore[arg-type]


# As a process


@unix
def test_a_hook_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    """Its time is that of a lifespan; and a signal handler hears the third signal whatever the loop is busy with."""
    script = (
        "import sys, time\nimport polyloop\nfrom tests.serve import apps\n"
        "report = polyloop.serve(apps.app, port=0, loops=2, access_log=False, lifespan_timeout=0.2,"
        " on_stop=lambda: time.sleep(3600), on_ready=lambda server: server.shutdown())\n"
        "sys.exit(0 if 'on_stop failed' in str(report) else 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@unix
def test_the_third_signal_ends_it_whatever_it_is_busy_with() -> None:
    """Here with a hook that holds up its control loop."""
    script = (
        "import os, signal, time\nimport polyloop\nfrom tests.serve import apps\n"
        "def ready(server):\n"
        "    for _ in range(3):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(3600)\n"
        "polyloop.serve(apps.app, port=0, loops=2, access_log=False, on_ready=ready)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == 1
    assert "third signal" in done.stderr


@unix
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_it_in_good_order(number: str, tmp_path: Path) -> None:
    """Exit code 0, every lifespan has seen its end, and the signal's own effect is not felt."""
    lines = tmp_path / "lifespans"
    with Program(env={"LIFESPAN_FILE": str(lines)}, loops=3).until_ready() as program:
        with program.connect() as wire:
            assert wire.get().body == b"hello"
        program.signal(getattr(signal, number))
        assert program.wait() == 0, program.log
        assert program.report is not None and program.report.clean and program.report.requests == 1
        assert program.log == ""
    assert sorted(line.split()[0] for line in lines.read_text().splitlines()) == ["down"] * 3 + ["up"] * 3


@unix
def test_a_slow_request_is_finished_after_the_signal() -> None:
    """The listening socket has gone meanwhile."""
    with Program().until_ready() as program, program.connect() as wire:
        wire.send(request("/slow?1"))
        with program.connect() as other:
            other.get()
        program.signal(signal.SIGTERM)
        until(lambda: not listens(program.port))
        assert wire.answer().body == b"slow"
        assert program.wait() == 0


@unix
def test_a_start_that_fails_ends_the_process() -> None:
    """With the reason on standard error, and no process that hangs."""
    with Program("tests.serve.test_asgi_bad_input:raises_at_once", factory=True) as program:
        assert program.wait() == 1
        assert "ServerStartError" in program.log


@unix
@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_restart_hands_the_port_over_under_load(reuse_port: bool) -> None:
    """SIGUSR2: the new process serves on the same socket before the old one stops; no request is lost."""
    from tests.serve.test_drain import load

    port = free_port()
    with Program(port=port, reuse_port=reuse_port).until_ready() as program:
        askers = load(port, keeping=3)
        program.signal(signal.SIGUSR2)
        old = program.process.pid
        assert program.process.stdout is not None
        successor = 0
        try:
            line = program.process.stdout.readline()  # the successor writes to the same
            assert line == f"port {port}\n"
            until(lambda: program.process.poll() is not None)
            count = sum(one.answered for one in askers)
            until(lambda: sum(one.answered for one in askers) > count + 100)
            successor = _who_listens(port)
            assert successor not in (0, old)
            for one in askers:
                one.stop = True
            for one in askers:
                one.end()
            assert [one.lost for one in askers] == [[]] * 3
        finally:
            if successor:
                os.kill(successor, signal.SIGTERM)
        assert program.wait() == 0
        until(lambda: not listens(port))


def _who_listens(port: int) -> int:
    """The process that listens there, as Linux tells."""
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        parts = line.split()
        if parts[1] == f"0100007F:{port:04X}" and parts[3] == "0A":
            inode = parts[9]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for fd in os.listdir(process / "fd"):
                if os.readlink(process / "fd" / fd) == f"socket:[{inode}]":
                    return int(process.name)
        except OSError:
            continue
    return 0


@unix
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl(tmp_path: Path) -> None:
    """A client of another make: large bodies both ways, 100-continue of its own accord."""
    body = tmp_path / "body"
    body.write_bytes(b"x" * 3_000_000)
    with Program().until_ready() as program:
        command = ["curl", "-sS", "--data-binary", f"@{body}", f"http://127.0.0.1:{program.port}/echo"]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
        assert done.stdout == body.read_bytes()
        program.signal(signal.SIGTERM)
        assert program.wait() == 0


@unix
def test_systemd_hears_of_readiness_and_of_the_end(tmp_path: Path) -> None:
    """By NOTIFY_SOCKET, with the watchdog fed in between."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with Program(env=env).until_ready() as program:
            said = {manager.recv(1000).decode() for _ in range(3)}
            assert any("READY=1" in one for one in said) and any("WATCHDOG=1" in one for one in said)
            program.signal(signal.SIGTERM)
            while "STOPPING=1" not in manager.recv(1000).decode():
                pass
            assert program.wait() == 0


@unix
def test_systemd_may_hand_the_socket_over() -> None:
    """By LISTEN_FDS: it is there before the process is."""
    code = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3, inheritable=True)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "from polyloop.serve import serve\n"
        "serve('tests.serve.apps:app', loops=2, access_log=False)\n"
    )
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with subprocess.Popen([sys.executable, "-c", code, str(sock.fileno())], pass_fds=[sock.fileno()]) as process:
            try:
                with Wire(sock.getsockname()) as wire:
                    assert wire.get().body == b"hello"
            finally:
                process.terminate()
            assert process.wait(PATIENCE) == 0


def test_the_end_is_bounded_when_nothing_is_to_be_done() -> None:
    """A server without connections stops at once."""
    with serving(apps.app, graceful_timeout=600, lifespan_timeout=600) as served:
        begun = time.monotonic()
        assert served.stop().clean
        assert time.monotonic() - begun < 5


def test_it_can_be_shut_down_while_it_starts() -> None:
    """By whoever has the server already: the application, through a hook."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await apps.app(scope, receive, send)

    def on_ready(server: WebServer) -> None:
        seen.append(server.state)
        server.shutdown()

    thread = TestThread(lambda: serve(app, loops=2, port=0, access_log=False, on_ready=on_ready), name="serving")
    assert thread.result().clean and seen == ["serving"]
