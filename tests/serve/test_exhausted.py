"""A process that runs out of descriptors: the server says so, and goes on when there are some again."""

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, logging, resource, socket, sys, threading
import polyloop

said = []
class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("polyloop").addHandler(Keep())

async def handle(reader, writer):
    while line := await reader.readline():
        writer.write(line)
    writer.close()

def ask(sock):
    sock.settimeout(60)
    sock.sendall(b"hello\\n")
    return sock.recv(100)

with polyloop.Runtime(loops=2) as runtime:
    options = {"reuse_port": True} if sys.argv[1] == "reuse_port" else {}
    server = runtime.run(polyloop.start_server(handle, "127.0.0.1", 0, **options))
    where = server.sockets[0].getsockname()
    clients = [socket.socket() for _ in range(20)]
    first = socket.socket()
    first.connect(where)
    assert ask(first) == b"hello\\n"
    used = max(sock.fileno() for sock in clients + [first]) + 4
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    hold = []
    try:
        while True:
            hold.append(socket.socket())
    except OSError as exc:
        assert exc.errno == 24, exc
    for client in clients:
        client.connect(where)
    turn = threading.Event()
    for _ in range(6000):
        if said:
            break
        turn.wait(0.01)
    assert sum(load.accepted for load in server.loads) == 1, server.loads
    assert ask(first) == b"hello\\n"
    if sys.argv[2] == "close":
        for sock in hold:
            sock.close()
        first.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert {ask(client) for client in clients} == {b"hello\\n"}
    for sock in [*clients, *hold, first]:
        sock.close()
    server.close()
    runtime.run(server.wait_closed())
print(len(said), said[0])
"""


@pytest.mark.parametrize("kind", ["acceptor", "reuse_port"])
@pytest.mark.parametrize("again", ["close", "limit"])
def test_a_server_outlives_a_lack_of_descriptors(kind: str, again: str) -> None:
    """It complains once, with the next step; those that waited are served when a connection has gone, or in a while."""
    if sys.platform == "win32":
        pytest.skip("there is no such limit on Windows")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, again], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    number, _, message = done.stdout.partition(" ")
    assert int(number) <= (2 if kind == "reuse_port" else 1)
    assert "cannot accept: the system has no room for another connection (descriptors, see 'ulimit -n'" in message


FILTERED = PROGRAM.replace(
    "said = []",
    """said = []
def fail(record):
    said.append(threading.current_thread().name)
    raise LookupError("of the filter")
logging.getLogger("polyloop.serve").addFilter(fail)
threading.excepthook = lambda args: None""",
)


@pytest.mark.parametrize("kind", ["acceptor", "reuse_port"])
def test_a_log_filter_that_fails_does_not_end_the_acceptor(kind: str) -> None:
    """The user's code runs on a thread of its own; all are served in the end."""
    if sys.platform == "win32":
        pytest.skip("there is no such limit on Windows")
    done = subprocess.run(
        [sys.executable, "-c", FILTERED, kind, "close"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "polyloop-report"
