"""The end of a server in good order: every request that a client has sent is answered, or named in the report."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import until
from tests.serve import apps
from tests.serve.apps import Receive, Scope, Send, respond, routed
from tests.serve.web import HTTP, PATIENCE, Program, Serving, Wire, in_flight, listens, request, serving

from polyloop import to_thread
from polyloop.serve import serve_aiohttp
from polyloop.testing import TestThread

unix = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals as on unix")


def drained(served: Serving) -> bool:
    """Whether every loop has heard that the end has come."""
    engines: Any = [engine for _, engine in served.server._engines]
    return all(engine._gate.draining for engine in engines)


class Asker:
    """A client that keeps a connection and asks again and again, until its last answer or its last connection.

    Attributes:
        answered: Complete answers.
        lost: Requests that were sent and never answered. A connection that the server closes while nothing is asked
            on it is none; nor is one that cannot be made.
    """

    def __init__(self, port: int, path: str, keep: bool) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self.stop = False
        self._port = port
        self._path = path
        self._keep = keep
        self._thread = TestThread(self._run, name="asker")

    def end(self) -> None:
        """Wait for its last connection."""
        self._thread.result()

    def _run(self) -> None:
        while not self.stop:
            try:
                wire = Wire(("127.0.0.1", self._port))
            except OSError:
                return
            with wire:
                self._ask(wire)

    def _ask(self, wire: Any) -> None:
        while not self.stop:
            head = () if self._keep else ("Connection: close",)
            asked = False
            try:
                wire.send(request(self._path, "GET", *head))
                asked = True
                answer = wire.answer()
            except (ConnectionError, ValueError) as exc:
                self.lost.append(f"{'asked' if asked else 'not sent'}: {exc!r}")
                return
            assert answer.status == 200
            self.answered += 1
            if answer.headers.get("connection") == "close":
                return


def load(port: int, path: str = "/", keeping: int = 4, short: int = 0) -> list[Asker]:
    """Clients of both kinds, each of which has had an answer."""
    askers = [Asker(port, path, True) for _ in range(keeping)] + [Asker(port, path, False) for _ in range(short)]
    until(lambda: all(one.answered for one in askers))
    return askers


# No request is lost


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("path", ["/", "/slow?0.02", "/large?300000"])
def test_no_request_is_lost_under_load(http: str, path: str) -> None:
    """The last answer on a connection says so, and then no client sends another request there."""
    with serving(apps.make, factory=True, uvicorn={"http": http}) as served:
        askers = load(served.port, path)
        until(lambda: sum(one.answered for one in askers) > 20)
        report = served.stop()
        for one in askers:
            one.end()
    assert [one.lost for one in askers] == [[]] * 4
    assert report.clean and report.requests >= sum(one.answered for one in askers)


def test_no_request_of_an_aiohttp_server_is_lost() -> None:
    """The same with the other engine."""
    from tests.serve.test_aiohttp import make

    with serving(make, run=serve_aiohttp) as served:
        askers = load(served.port)
        until(lambda: sum(one.answered for one in askers) > 20)
        assert served.stop().clean
        for one in askers:
            one.end()
    assert [one.lost for one in askers] == [[]] * 4


@pytest.mark.parametrize("repeat", range(3))
def test_a_process_under_load_ends_with_0_and_loses_nothing(repeat: int, tmp_path: Path) -> None:
    """By a signal; all lifespans have seen their end."""
    lines = tmp_path / "lifespans"
    with Program(env={"LIFESPAN_FILE": str(lines)}, loops=3).until_ready() as program:
        askers = load(program.port)
        until(lambda: sum(one.answered for one in askers) > 100)
        program.signal(signal.SIGTERM)
        assert program.wait() == 0, program.log
        for one in askers:
            one.end()
        assert [one.lost for one in askers] == [[]] * 4
        assert program.report is not None and program.report.clean
        assert program.report.requests == sum(one.answered for one in askers)
    events = lines.read_text().splitlines()
    assert len([event for event in events if event.startswith("up")]) == 3
    assert len([event for event in events if event.startswith("down")]) == 3


WRK_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="there is no wrk here: apt-get install wrk")
def test_wrk_sees_no_failed_request() -> None:
    """It counts connections that cannot be made when the server has gone (as write errors), and nothing else."""
    with Program(health="/health").until_ready() as program:
        command = ["wrk", "-t1", "-c4", "-d2", "--timeout", "2", f"http://127.0.0.1:{program.port}/"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
            asked = 0
            with program.connect() as wire:
                while wire.get("/health").json()["requests"] < 500:
                    asked += 1
            program.signal(signal.SIGTERM)
            assert program.wait() == 0, program.log
            out, _ = wrk.communicate(timeout=PATIENCE)
    assert "Non-2xx" not in out
    errors = WRK_ERRORS.search(out)
    if errors is not None:
        assert errors[2] == errors[4] == "0", out
    done = re.search(r"(\d+) requests in", out)
    assert done is not None and program.report is not None
    assert int(done[1]) + asked + 1 == program.report.requests  # each answer was received


@pytest.mark.parametrize("http", HTTP)
def test_pipelined_requests_are_all_answered(http: str) -> None:
    """Those that had come; the last of them ends the connection."""
    with serving(apps.make, factory=True, uvicorn={"http": http}) as served, served.connect() as wire:
        wire.send(request("/slow?0.3") + request("/large?2") + request("/large?3") + request("/large?4"))
        until(lambda: in_flight(served))
        served.server.shutdown()
        answers = [wire.answer() for _ in range(4)]
        assert [answer.body for answer in answers] == [b"slow", b"xx", b"xxx", b"xxxx"]
        assert ["connection" in answer.headers for answer in answers] == [False, False, False, True]
        assert wire.rest() == b""
        assert served.stop().clean


@pytest.mark.parametrize("http", HTTP)
def test_what_is_in_flight_is_finished(http: str) -> None:
    """A request whose answer has not begun, one whose answer is on its way, one whose body is on its way."""
    go, begun = threading.Event(), threading.Event()

    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        begun.set()
        await to_thread(go.wait, PATIENCE)
        await send({"type": "http.response.body", "body": b"second"})

    routes = {**apps.ROUTES, "/streaming": streaming}
    with (
        serving(routed(routes), uvicorn={"http": http}) as served,
        served.connect() as slow,
        served.connect() as stream,
        served.connect() as upload,
    ):
        slow.send(request("/slow?0.3"))
        stream.send(request("/streaming"))
        upload.send(request("/size", "POST", "Content-Length: 8") + b"half")
        until(lambda: in_flight(served) == 3)
        assert begun.wait(PATIENCE)
        served.server.shutdown()
        until(lambda: drained(served))
        assert not listens(served.port)
        go.set()
        upload.send(b"half")
        assert upload.answer().body == b"8"
        assert stream.answer().body == b"firstsecond"
        assert slow.answer().headers["connection"] == "close"
        for wire in (slow, stream, upload):
            assert wire.rest() == b""
        assert served.stop().clean


@pytest.mark.parametrize("http", HTTP)
def test_idle_connections_have_a_moment_for_a_request_that_is_on_its_way(http: str) -> None:
    """Then they are closed; also those that never asked for anything."""
    with (
        serving(apps.make, factory=True, uvicorn={"http": http}) as served,
        served.connect() as asks,
        served.connect() as idle,
        served.connect() as never,
    ):
        asks.get()
        idle.get()
        served.server.shutdown()
        until(lambda: drained(served))
        answer = asks.get()
        assert answer.status == 200 and answer.headers["connection"] == "close"
        assert idle.rest() == never.rest() == asks.rest() == b""
        assert served.stop().clean


@pytest.mark.parametrize("http", HTTP)
def test_a_request_whose_head_has_begun_is_waited_for(http: str) -> None:
    """Beyond that moment; also where it began behind a request that was in flight."""
    turn = threading.Event()
    with (
        serving(apps.make, factory=True, uvicorn={"http": http}) as served,
        served.connect() as first,
        served.connect() as second,
    ):
        begin = b"GET / HTTP/1.1\r\nHost: x\r\n"
        second.send(request("/slow?0.3") + begin)
        until(lambda: in_flight(served) == 1)
        served.server.shutdown()
        until(lambda: drained(served))
        first.send(begin)
        assert second.answer().body == b"slow"
        turn.wait(0.8)  # more than an idle connection has
        for wire in (first, second):
            wire.send(b"X: x\r\n\r\n")
            answer = wire.answer()
            assert answer.body == b"hello" and answer.headers["connection"] == "close"
            assert wire.rest() == b""
        assert served.stop().clean


@pytest.mark.parametrize("http", HTTP)
def test_a_head_that_has_begun_is_not_waited_for_longer_than_ever(http: str) -> None:
    """That is head_timeout."""
    with serving(apps.make, factory=True, head_timeout=0.8, uvicorn={"http": http}) as served:
        with served.connect() as wire:
            served.server.shutdown()
            until(lambda: drained(served))
            wire.send(b"GET / HTTP/1.1\r\n")
            assert wire.rest() == b""
        assert served.stop(5).clean


# The deadline


def test_what_takes_too_long_is_cancelled_and_named() -> None:
    """The application may answer that; else the client gets an error, or its connection ends."""
    events: list[str] = []

    async def last_words(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await respond(send, b"too late", 503)

    with (
        serving(routed({**apps.ROUTES, "/last": last_words}, events)) as served,
        served.connect() as one,
        served.connect() as another,
    ):
        one.send(request("/slow?600"))
        another.send(request("/last"))
        until(lambda: in_flight(served) == 2)
        report = served.stop(0.3)
        assert sorted(name.split(" for ")[0] for name in report.cut) == ["GET '/last'", "GET '/slow'"]
        assert not report.clean and not report.failures
        assert one.answer().status == 500
        answer = another.answer()
        assert (answer.status, answer.body) == (503, b"too late")
    assert [event.split()[0] for event in events] == ["up", "up", "down", "down"]


def test_a_client_that_reads_nothing_is_cut_at_the_deadline() -> None:
    """Its application waits for it, and is named."""
    with serving(apps.make, factory=True) as served, served.connect() as wire:
        wire.send(request("/large?100000000"))
        until(lambda: in_flight(served) == 1)
        report = served.stop(0.5)
        assert [name.split(" for ")[0] for name in report.cut] == ["GET '/large'"]


def test_a_client_that_does_not_read_the_end_of_its_answer_is_cut_too() -> None:
    """Its application has long ended; the connection is named instead."""

    async def big(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    with serving(routed({"/": big})) as served, served.connect() as wire:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.send(request("/"))
        until(lambda: served.server.requests == 1)
        report = served.stop(0.7)
        assert len(report.cut) == 1 and "1 connections on polyloop-" in report.cut[0]


def test_an_application_that_swallows_its_cancellation_is_left_behind() -> None:
    """The end stays bounded."""
    release = threading.Event()

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    with serving(routed({"/": stubborn})) as served, served.connect() as wire:
        wire.send(request("/"))
        until(lambda: in_flight(served) == 1)
        served.server.shutdown(0.1)
        until(lambda: served.server.state == "closed")
        release.set()
        report = served.stop()
        assert len(report.cut) == 1


def test_a_second_shutdown_may_bring_the_deadline_forward() -> None:
    """And never pushes it back."""
    with serving(apps.make, factory=True, graceful_timeout=600) as served, served.connect() as wire:
        wire.send(request("/slow?600"))
        until(lambda: in_flight(served) == 1)
        served.server.shutdown()
        until(lambda: drained(served))
        served.server.shutdown(0)
        served.server.shutdown(600)
        report = served.stop()
        assert len(report.cut) == 1


def test_a_lifespan_that_does_not_end_is_left_and_named() -> None:
    """After lifespan_timeout; the others have ended."""
    events: list[str] = []
    cancelled: list[str] = []

    def factory() -> Any:
        whole = routed(apps.ROUTES, events)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def hanging(message: Any) -> None:
                if message["type"] == "lifespan.shutdown.complete":
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        cancelled.append("yes")
                        raise
                await send(message)

            second = threading.current_thread().name == "polyloop-1"
            await whole(scope, receive, hanging if scope["type"] == "lifespan" and second else send)

        return app

    with serving(factory, factory=True, lifespan_timeout=0.3) as served:
        report = served.stop()
    assert report.failures == ("the application on polyloop-1 had not shut down after 0.3 s",)
    assert [event.split()[0] for event in events] == ["up", "up", "down", "down"] and cancelled == ["yes"]


def test_a_lifespan_may_go_on_after_its_last_word() -> None:
    """For a moment; that is no failure."""
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        await to_thread(events.append, "last")

    with serving(app) as served:
        assert served.stop().clean
    assert events == ["last", "last"]


# Signals


@unix
def test_a_second_signal_ends_the_wait() -> None:
    """The process says what it has cut."""
    with Program(graceful_timeout=600).until_ready() as program, program.connect() as wire:
        wire.send(request("/slow?600"))
        with program.connect() as other:
            other.get()
        program.signal(signal.SIGTERM)
        until(lambda: not listens(program.port))
        program.signal(signal.SIGINT)
        assert program.wait() == 3
        assert program.report is not None and len(program.report.cut) == 1


@unix
def test_a_third_signal_ends_the_process() -> None:
    """Whatever it does: here a lifespan that does not end."""
    with Program("tests.serve.test_drain:endless", factory=False, lifespan_timeout=600).until_ready() as program:
        program.signal(signal.SIGTERM)
        until(lambda: not listens(program.port))
        program.signal(signal.SIGTERM)
        program.signal(signal.SIGINT)  # another number: two of one, sent at once, may arrive as one
        program.signal(signal.SIGTERM)
        assert program.wait() == 1
        assert "third signal" in program.log


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """An application whose lifespan does not end."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await asyncio.Event().wait()


@unix
def test_a_signal_during_the_start_ends_that(tmp_path: Path) -> None:
    """Nothing is served, and the process ends in good order."""
    begun = tmp_path / "begun"
    with Program("tests.serve.test_drain:never_up", env={"BEGUN": str(begun)}, factory=False) as program:
        until(begun.exists)
        program.signal(signal.SIGTERM)
        assert program.wait() == 0, program.log
        assert program.report is not None and program.report.requests == 0


async def never_up(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that does not come up."""
    await receive()
    Path(os.environ["BEGUN"]).touch()
    await asyncio.Event().wait()


@unix
def test_sighup_opens_the_access_log_anew(tmp_path: Path) -> None:
    """After logrotate has moved it away; no line is lost."""
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    with Program(access_log=str(log)).until_ready() as program:
        with program.connect() as wire:
            wire.get("/who?1")
            until(lambda: "who?1" in log.read_text())
            log.rename(old)
            program.signal(signal.SIGHUP)
            until(log.exists)
            wire.get("/who?2")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert "who?1" in old.read_text() and "who?2" in log.read_text()


def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """What an application persists before it answers is there; every answer that came was whole."""
    file = tmp_path / "persisted"
    answers: list[list[str]] = [[] for _ in range(4)]

    def client(number: int, port: int) -> None:
        with contextlib.suppress(ConnectionError), Wire(("127.0.0.1", port)) as wire:
            for count in range(10**6):
                line = f"{number}-{count}"
                wire.send(request("/persist", "POST", body=line.encode()))
                answer = wire.answer()
                assert answer.status == 200 and answer.body.decode() == line
                answers[number].append(line)

    with Program(env={"APP_FILE": str(file)}).until_ready() as program:
        threads = [TestThread(client, number, program.port) for number in range(4)]
        until(lambda: all(len(lines) > 20 for lines in answers))
        program.signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        for thread in threads:
            thread.result()
        assert program.wait() == -9
    persisted = set(file.read_text().split())
    assert all(line in persisted for lines in answers for line in lines)


def test_tls_clients_that_say_nothing_do_not_hold_up_the_end(certificates: Any) -> None:
    """One that never begins its handshake, and one that does not answer the goodbye."""
    with serving(apps.app, ssl=certificates.for_server(), graceful_timeout=PATIENCE) as served:
        address = ("127.0.0.1", served.port)
        with (
            socket.create_connection(address, PATIENCE),
            socket.create_connection(address, PATIENCE) as plain,
            certificates.for_client().wrap_socket(plain, server_hostname="localhost") as idle,
        ):
            idle.sendall(request())
            assert idle.recv(1000)
            report = served.stop()
    assert report.clean
    assert report.requests == 1
