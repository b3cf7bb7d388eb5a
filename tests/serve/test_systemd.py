"""systemd's protocols: what is said to it, and the sockets that it hands over."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyloop.serve._systemd import inherited_sockets, notify, reloading, take_listener, watchdog_interval

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is a matter of unix")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What listens to notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_states_are_sent_in_one_message_a_line_each(manager: socket.socket) -> None:
    """So that the manager takes them together."""
    assert notify("READY=1", "STATUS=serving ☺")
    assert manager.recv(1000) == "READY=1\nSTATUS=serving ☺".encode()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
def test_an_abstract_address_is_written_with_an_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers."""
    name = f"polyloop-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("STOPPING=1")
        assert sock.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all", "vsock:1:2", "/" + "x" * 300])
def test_without_a_manager_nothing_is_sent_or_raised(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Also where the variable is wrong: the service is more important than its report."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


def test_a_manager_that_does_not_read_holds_up_nobody(manager: socket.socket) -> None:
    """Its queue is full."""
    while notify("STATUS=" + "x" * 1000):
        pass
    assert manager.recv(8) == b"STATUS=x"


def test_a_reload_says_when_it_began() -> None:
    """systemd wants the monotonic clock in microseconds."""
    import time

    before = time.monotonic_ns() // 1000
    state, _, stamp = reloading().partition("\nMONOTONIC_USEC=")
    assert state == "RELOADING=1"
    assert before <= int(stamp) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_signs_of_life_are_sent_twice_as_often_as_needed(variables: dict[str, str], seconds: float | None) -> None:
    """And only by the process that is watched."""
    assert watchdog_interval(variables) == seconds


# Sockets that are handed over

CHILD = """
import json, os, sys
fds = json.loads(sys.argv[1])
pid = {"self": str(os.getpid())}.get(sys.argv[2], sys.argv[2])
for target, fd in enumerate(fds, 3):  # what systemd does before it starts us
    os.dup2(fd, target, inheritable=True)
os.environ.update({"LISTEN_PID": pid, "LISTEN_FDS": sys.argv[3], "LISTEN_FDNAMES": "web:admin"})
from polyloop.serve._systemd import inherited_sockets
try:
    found = inherited_sockets()
except ValueError as exc:
    print(json.dumps(str(exc)))
else:
    left = [name for name in os.environ if name.startswith("LISTEN_")]
    again = inherited_sockets()
    print(json.dumps([[sock.getsockname() for sock in found], [sock.get_inheritable() for sock in found], left, again]))
"""


def activated(*socks: socket.socket, pid: str = "self", count: str | None = None) -> object:
    """What ``inherited_sockets`` gave in a process that was started with these."""
    # High numbers, so that the child's own descriptors 3, 4, ... are not among those that it copies.
    import fcntl

    fds = [fcntl.fcntl(sock, fcntl.F_DUPFD, 50) for sock in socks]
    number = str(len(fds)) if count is None else count
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(fds), pid, number],
            pass_fds=fds,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        for fd in fds:
            os.close(fd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sockets_of_a_socket_unit_are_taken_over(tmp_path: Path) -> None:
    """In order, not inheritable, and once: the variables are gone."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "sock"))
        unix.listen()
        assert activated(tcp, unix) == [
            [list(tcp.getsockname()), str(tmp_path / "sock")],
            [False, False],
            [],
            [],
        ]


def test_sockets_of_another_process_are_left_alone() -> None:
    """The variables were inherited from the process that they were for."""
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        assert activated(tcp, pid="1") == [[], [], [], []]


def test_a_process_that_systemd_did_not_start_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is the usual case."""
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    assert inherited_sockets() == []


@pytest.mark.parametrize(
    ("pid", "count", "message"),
    [
        ("self", "two", "LISTEN_FDS='two' is not a number of sockets; unset it, or correct it"),
        ("self", "-1", "LISTEN_FDS='-1' is not a number of sockets; unset it, or correct it"),
        ("me", "1", "LISTEN_PID='me' is not a process; unset it, or correct it"),
    ],
)
def test_variables_that_make_no_sense_are_an_error(pid: str, count: str, message: str) -> None:
    """Naming the value."""
    assert activated(pid=pid, count=count) == message


def test_a_descriptor_that_is_none_of_a_listening_socket_is_an_error() -> None:
    """Naming the socket by what the unit calls it."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket() as silent:
        assert (
            activated(tcp, silent) == "LISTEN_FDS=2 (admin): descriptor 4 does not listen; give a stream socket that"
            " listens"
        )


def test_a_datagram_socket_a_file_and_nothing_are_no_listeners(tmp_path: Path) -> None:
    """Each with the reason; what was given is left open."""
    with socket.socket(type=socket.SOCK_DGRAM) as udp, (tmp_path / "file").open("w") as file:
        with pytest.raises(ValueError, match=rf"^--fd: descriptor {udp.fileno()} is a datagram socket; "):
            take_listener(udp.fileno(), "--fd")
        with pytest.raises(ValueError, match="is no socket: socket operation on non-socket"):
            take_listener(file.fileno(), "--fd")
        os.fstat(udp.fileno())
        os.fstat(file.fileno())
    with pytest.raises(ValueError, match="is no socket: bad file descriptor"):
        take_listener(999, "--fd")
    with pytest.raises(ValueError, match="is no socket: negative file descriptor"):
        take_listener(-1, "--fd")
