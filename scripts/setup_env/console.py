"""What a person reads while set-up runs: steps, reasons, progress, and the tail of a command that failed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections import deque
from typing import Callable, Mapping, NoReturn, Optional, Sequence

_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
_TAIL_LINES = 25
_QUIET_INTERVAL_S = 15.0  # between progress lines where the output is a file or a pipe
_LIVE_INTERVAL_S = 0.2


class StepFailed(Exception):
    """A step could not be done; the message says why, in words for the person at the keyboard."""


def _paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _COLOUR else text


def step(text: str) -> None:
    print(_paint("1", f"==> {text}"), flush=True)


def note(text: str) -> None:
    print(f"    {text}", flush=True)


def notice(title: str, lines: Sequence[str]) -> None:
    """A box that is hard to overlook."""
    width = max(len(title), *(len(line) for line in lines)) + 4
    print(_paint("1;33", "\n".join(["*" * width, f"* {title}", *(f"*   {line}" for line in lines), "*" * width])), flush=True)


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
    cwd: Optional[str] = None,
    env: Optional[Mapping[str, str]] = None,
    timeout: Optional[float] = None,
    log: Optional[str] = None,
    on_line: Optional[Callable[[str], None]] = None,
) -> str:
    """Run a command and return what it printed; its output is shown only when it fails.

    Args:
        timeout: Seconds after which the command is stopped; it then counts as failed. Lines keep being read until then.
        log: File that keeps the whole output.
        on_line: Called with each line, for progress.
    Raises:
        StepFailed: the command is absent, exited with another code than 0, or ran out of time.
    """
    shown = " ".join(shlex.quote(part) for part in command)
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise StepFailed(f"cannot start {shown}: {error}") from error
    try:
        lines = _collect(process, log, on_line, timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        where = f"\n(whole output: {log})" if log else ""
        tail = "\n".join(lines[-_TAIL_LINES:])
        raise StepFailed(f"{shown}\nexited with code {process.returncode}:\n{tail}{where}")
    return "\n".join(lines)


def _collect(
    process: "subprocess.Popen[str]",
    log: Optional[str],
    on_line: Optional[Callable[[str], None]],
    timeout: Optional[float],
) -> "list[str]":
    if on_line is None and log is None:
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"{' '.join(map(str, process.args))}\ngave no answer within {timeout:.0f} s") from error  # type: ignore[union-attr]
        return out.splitlines()
    kept: "deque[str]" = deque(maxlen=10_000)
    sink = open(log, "a", encoding="utf-8") if log else None
    try:
        for line in process.stdout or ():
            kept.append(line.rstrip("\n"))
            if sink:
                sink.write(line)
            if on_line:
                on_line(line)
    finally:
        if sink:
            sink.close()
    process.wait()
    return list(kept)
