"""What a person reads while set-up runs: steps, reasons, progress, and the tail of a command that failed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import textwrap
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Mapping, NoReturn, Optional, Sequence

_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
_TAIL_LINES = 25
_WIDTH = 110
_QUIET_INTERVAL_S = 15.0  # between progress lines where the output is a file or a pipe
_LIVE_INTERVAL_S = 0.2


class StepError(Exception):
    """A step could not be done; the message says why, in words for the person at the keyboard."""


def _paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _COLOUR else text


def step(text: str) -> None:
    print(_paint("1", f"==> {text}"), flush=True)


def note(text: str) -> None:
    print(f"    {text}", flush=True)


def notice(title: str, lines: Sequence[str]) -> None:
    """A box that is hard to overlook."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, _WIDTH, subsequent_indent="    ")]
    border = "*" * (_WIDTH + 4)
    box = [border, f"* {title}", *(f"*   {line}" for line in wrapped), border]
    print(_paint("1;33", "\n".join(box)), flush=True)


def fail(text: str) -> NoReturn:
    print(_paint("1;31", f"setup: {text}"), file=sys.stderr, flush=True)
    raise SystemExit(1)


class Progress:
    """One line that counts: rewritten in place on a terminal, printed now and then elsewhere."""

    def __init__(self, label: str, expected: Optional[int] = None, unit: str = "") -> None:
        self._label = label
        self._expected = expected
        self._unit = unit
        self._count = 0
        self._started = time.monotonic()
        self._shown_at = self._started
        self._live = sys.stdout.isatty()

    def advance(self) -> None:
        self._count += 1
        now = time.monotonic()
        if now - self._shown_at >= (_LIVE_INTERVAL_S if self._live else _QUIET_INTERVAL_S):
            self._shown_at = now
            self._show("\r" if self._live else "", "" if self._live else "\n")

    def done(self) -> None:
        self._show("\r" if self._live else "", "\n")

    def _show(self, before: str, after: str) -> None:
        of = f" of about {max(self._expected, self._count)}" if self._expected else ""
        seconds = time.monotonic() - self._started
        print(f"{before}    {self._label}: {self._count}{of} {self._unit}, {seconds:.0f} s", end=after, flush=True)


def run(
    command: Sequence[str],
    *,
    cwd: Optional[Path] = None,
    env: Optional[Mapping[str, str]] = None,
    timeout: Optional[float] = None,
) -> str:
    """Run a command and return what it printed; its output is shown only when it fails.

    Args:
        env: Variables in addition to our own.
        timeout: Seconds after which the command is killed, which counts as a failure.

    Raises:
        StepError: the command is absent, exited with another code than 0, or ran out of time.
    """
    with _started(command, cwd, env) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise StepError(f"{_shown(command)}\ngave no answer within {timeout:.0f} s") from error
    _check(command, process.returncode, output.splitlines())
    return output


def follow(command: Sequence[str], *, cwd: Path, log: Path, on_line: Callable[[str], None]) -> None:
    """Run a command that takes long: its output goes to a file, and each line to ``on_line`` for progress.

    Raises:
        StepError: the command is absent, or exited with another code than 0.
    """
    tail: "deque[str]" = deque(maxlen=_TAIL_LINES)
    with open(log, "a", encoding="utf-8") as sink, _started(command, cwd, None) as process:
        for line in process.stdout or ():
            tail.append(line.rstrip("\n"))
            sink.write(line)
            on_line(line)
    _check(command, process.returncode, [*tail, f"(the whole output: {log})"])


@contextmanager
def _started(
    command: Sequence[str], cwd: Optional[Path], env: Optional[Mapping[str, str]]
) -> "Iterator[subprocess.Popen[str]]":
    """A child process with both outputs in one pipe; it is gone when the block ends, however it ends."""
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise StepError(f"cannot start {_shown(command)}: {error}") from error
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _shown(command: Sequence[str]) -> str:
    return " ".join(shlex.quote(part) for part in command)


def _check(command: Sequence[str], code: int, lines: Sequence[str]) -> None:
    if code != 0:
        tail = "\n".join(lines[-_TAIL_LINES:])
        raise StepError(f"{_shown(command)}\nexited with code {code}:\n{tail}")
