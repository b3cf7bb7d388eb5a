"""``polyloop serve``: what is wrong with a command line is told on one line, before anything is served."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("uvicorn")

from polyloop.cli import _serving
from polyloop.cli._errors import CliError  # after the checks

type Polyloop = Callable[..., subprocess.CompletedProcess[str]]
type Program = Callable[[str], Path]

APP = """
import os
from pathlib import Path

async def app(scope, receive, send): ...
def make(): return app
def make_with(name): return app
def refuse(): raise OSError("my own")
def prepare(): ...
async def lifespan_fails(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
config = {}
"""


@pytest.fixture
def folder(tmp_path: Path, program: Program) -> Path:
    program(APP)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    return tmp_path


OFFERED = "app, lifespan_fails, make, make_with, prepare"


WRONG = [
    (["app"], "target 'app' is not MODULE:APP. hint: write app:app"),
    (["nowhere:app"], "no module named 'nowhere'. hint: start it where 'import nowhere' works"),
    (["app:nope"], f"module 'app' has no attribute 'nope'. hint: it has {OFFERED}"),
    (["app:config"], "'app:config' is not an ASGI application but dict. hint: it must be callable"),
    (
        ["app:make"],
        "'app:make' takes no arguments, so it is no ASGI application. hint: add --factory if it makes one",
    ),
    (
        ["app:make_with", "--factory"],
        "the factory 'app:make_with' takes arguments: (name). hint: it is called without any; leave out --factory",
    ),
    (["app:app", "--on-start", "app"], "--on-start 'app' is not MODULE:FUNCTION. hint: write app:prepare"),
    (["app:app", "--on-start", "app:nope"], f"module 'app' has no attribute 'nope'. hint: it has {OFFERED}"),
    (
        ["app:app", "--on-stop", "app:config"],
        "--on-stop 'app:config' is not a function but dict. hint: define it with 'def'",
    ),
    (
        ["app:app", "--on-stop", "app:make_with"],
        "--on-stop 'app:make_with' takes arguments: (name). hint: it is called without any",
    ),
    (
        ["app:app", "--port", "65536"],
        "Invalid value for '--port': 65536 is not in the range 0<=x<=65535. hint: see 'polyloop serve --help'",
    ),
    (
        ["app:app", "--loops", "0"],
        "Invalid value for '--loops': 0 is not in the range x>=1. hint: see 'polyloop serve --help'",
    ),
    (
        ["app:app", "--head-timeout", "0"],
        "Invalid value for '--head-timeout': 0.0 is not in the range x>0. hint: see 'polyloop serve --help'",
    ),
    (
        ["app:app", "--uds", "s", "--port", "80"],
        "--port and --uds both say where to listen. hint: give one",
    ),
    (["app:app", "--fd", "3", "--host", "::1"], "--host and --fd both say where to listen. hint: give one of them"),
    (["app:app", "--reuse-port", "--uds", "s"], "--reuse-port needs --host and --port. hint: leave it out"),
    (
        ["app:app", "--reuse-port", "--max-connections", "9"],
        "--max-connections cannot be counted with --reuse-port, where each loop accepts. hint: give --max-conn",
    ),
    (["app:app", "--fd", "99"], "--fd 99: descriptor 99 is no socket: bad file descriptor. hint: see"),
    (["app:app", "--health", "health"], "--health 'health' is no path. hint: write /health"),
    (["app:app", "--reload-dir", "."], "--reload-dir without --reload. hint: add --reload"),
    (
        ["app:app", "--reload", "--reload-dir", "src"],
        "--reload-dir 'src' is no folder. hint: give a folder with Python files",
    ),
    (["app:app", "--ssl-keyfile", "k"], "--ssl-keyfile without --ssl-certfile. hint: give the certificate too"),
    (
        ["app:app", "--ssl-certfile", "missing.pem"],
        "cannot read --ssl-certfile 'missing.pem': no such file or directory. hint: give a PEM file that this",
    ),
    (
        ["app:app", "--ssl-certfile", "wrong.pem"],
        "--ssl-certfile wrong.pem: no certificate and private key in PEM. hint: look into them",
    ),
    (
        ["app:app", "--access-log", "a", "--no-access-log"],
        "--access-log and --no-access-log contradict each other. hint: give one of them",
    ),
    (
        ["app:app", "--loop", "trio"],
        "Invalid value for '--loop': 'trio' is not one of 'asyncio', 'uvloop',",
    ),
]

#: Runs many command lines in one process, since each takes half a second to start.
DRIVER = """
import contextlib, io, json, sys
from polyloop.cli import main
told = []
for args in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["serve", *args])
    told.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """What each of the wrong command lines came to."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "app.py").write_text(APP)
    (folder / "wrong.pem").write_text("no certificate\n")
    lines = [args for args, _ in WRONG]
    command = [sys.executable, "-c", DRIVER, json.dumps(lines)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=True)
    return {str(args): told for args, told in zip(lines, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize(("args", "line"), WRONG)
def test_a_wrong_command_line_is_told_on_one_line(
    wrong: dict[str, tuple[int, str, str]], args: list[str], line: str
) -> None:
    """Code 2, one line that names the value and the next step, nothing else."""
    code, out, err = wrong[str(args)]
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["app:lifespan_fails"], "the application lifespan_fails refused to start. hint: the log says why"),
        (
            ["app:refuse", "--factory"],
            "the factory refuse could not make the application: OSError('my own'). hint: see",
        ),
        (["app:app", "--access-log", "no/where.log"], "{folder}/no/where.log: no such file or directory. hint: see"),
        (["app:app", "--uds", "no/where"], "cannot listen on no/where: no such file or directory. hint: there is no"),
        (["app:app", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0: cannot assign requested address. hint: no"),
    ],
)
def test_a_server_that_cannot_start_is_told_on_one_line(
    polyloop: Polyloop, folder: Path, args: list[str], line: str
) -> None:
    """Code 1; what the application itself has to say stands before."""
    port = [] if "--uds" in args else ["--port", "0"]
    done = polyloop("serve", *args, *port)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {line.format(folder=folder)}")


def test_a_port_that_is_taken_is_told_with_the_address(polyloop: Polyloop, folder: Path) -> None:
    """Code 1."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = polyloop("serve", "app:app", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"error: cannot listen on 127.0.0.1:{port}: address already in use. "
        "hint: somebody else listens there; stop that, or choose another\n"
    )


def test_an_error_at_import_shows_its_traceback(polyloop: Polyloop, folder: Path) -> None:
    """It is the application's own."""
    done = polyloop("serve", "broken:app")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1] == f'  File "{folder / "broken.py"}", line 1, in <module>'
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'nothing_of_that_name'\n")


def test_a_hook_that_fails_is_the_programs_own_error(polyloop: Polyloop, folder: Path) -> None:
    """Code 1 and its traceback, whatever it raises: nothing is wrong with the command line."""
    (folder / "hooks.py").write_text("def up():\n    return int('not a number')\n")
    done = polyloop("serve", "app:app", "--port", "0", "--loops", "1", "--on-start", "hooks:up")
    assert done.returncode == 1
    assert f'File "{folder / "hooks.py"}", line 2, in up' in done.stderr
    assert "ValueError: invalid literal for int()" in done.stderr
    assert "--help" not in done.stderr


@pytest.mark.parametrize("begun", [False, True])
def test_an_error_is_one_of_the_options_only_before_the_application_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], begun: bool
) -> None:
    """Afterwards it is somebody else's, and shows where it comes from."""

    def serve(_app: object, *, on_start: Callable[[], object], **_options: object) -> None:
        if begun:
            on_start()
        raise ValueError("no such thing")

    monkeypatch.setattr("polyloop.serve", serve)
    monkeypatch.setattr(_serving, "configure_logging", lambda _level: None)
    settings = _serving.Settings(
        target="tests.cli.test_serve_options:asgi",
        factory=False,
        loops=1,
        loop_library="asyncio",
        fd=None,
        tls=_serving.Tls(),
        on_start=None,
        on_stop=None,
        log_level="info",
    )
    if begun:
        assert _serving.serve_settings(settings) == 1
        assert capsys.readouterr().err.endswith("ValueError: no such thing\n")
    else:
        with pytest.raises(CliError, match=r"^no such thing$") as caught:
            _serving.serve_settings(settings)
        assert caught.value.code == 2


async def asgi(scope: object, receive: object, send: object) -> None:
    """An application that is never called."""


def test_the_password_of_the_key_is_not_shown() -> None:
    """Where the settings are."""
    assert "secret" not in repr(_serving.Tls(certfile="cert.pem", password="secret"))


def test_without_uvicorn_it_says_what_to_install(tmp_path: Path) -> None:
    """The extra is named."""
    text = "import sys; sys.modules['uvicorn'] = None; from polyloop.cli import main; sys.exit(main(['serve', 'a:b']))"
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: serving needs 'uvicorn', which is not installed. hint: pip install 'polyloop[serve]'\n"
    )


def test_a_key_that_is_not_that_of_the_certificate_or_is_encrypted_is_told(
    polyloop: Polyloop, folder: Path, certificate: Callable[..., tuple[Path, Path]]
) -> None:
    """Nobody is asked for a password on the terminal."""
    cert, _ = certificate("one")
    _, other = certificate("two")
    _, locked = certificate("three", password="secret")

    def told(key: Path, *more: str) -> str:
        done = polyloop("serve", "app:app", "--ssl-certfile", str(cert), "--ssl-keyfile", str(key), *more)
        assert done.returncode == 2
        return done.stderr

    where = f"error: --ssl-certfile {cert} --ssl-keyfile"
    assert told(other) == f"{where} {other}: the key is not that of the certificate. hint: give those that belong\n"
    assert told(locked).startswith(
        f"error: the private key in {locked} is encrypted. hint: give --ssl-keyfile-password,"
    )
    assert told(locked, "--ssl-keyfile-password", "wrong") == (
        f"{where} {locked}: no certificate and private key in PEM, or the password is wrong. hint: look into them\n"
    )
