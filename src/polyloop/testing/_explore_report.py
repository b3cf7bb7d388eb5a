"""What an exploration tells: the message of a failure, and the schedule as text."""

import dis
import linecache
import os
import re
from itertools import pairwise

from polyloop.testing._explore_plans import Deviation, Place
from polyloop.testing._explore_points import describe_call
from polyloop.testing._explore_run import Actor, Failure, Switch

_PART = re.compile(r"(\d+)-(\d+)(t?)")


def write_schedule(deviations: list[Deviation], steps: int) -> str:
    """The schedule as text: ``step-thread`` for each choice that is not the first, ``t`` for a timeout, then a sum."""
    parts = [f"{step}-{thread}{'t' if timeout else ''}" for step, thread, timeout in deviations]
    return ".".join([*parts, f"{steps}"])


def read_schedule(text: str) -> tuple[list[Deviation], int]:
    """Undo ``write_schedule``.

    Raises:
        ValueError: it is no schedule.
    """
    *parts, steps = text.strip().split(".")
    found = [_PART.fullmatch(part) for part in parts]
    if not steps.isdigit() or not all(found):
        raise ValueError(f"{text!r} is no schedule; copy it from the message of an ExplorationError")
    read = [Deviation(int(match[1]), int(match[2]), bool(match[3])) for match in found if match is not None]
    if any(first.step >= second.step for first, second in pairwise(read)):
        raise ValueError(f"{text!r} is no schedule: its steps are out of order")
    return read, int(steps)


def describe(failure: Failure, how: str, schedule: str, actors: list[Actor], story: list[Switch]) -> str:
    """The message of an ``ExplorationError``."""
    lines = [failure.text, f"  found {how}; to see it again:", f"    explore(scenario, replay={schedule!r})"]
    lines += ["  what happened:", *(f"    {line}" for line in _tell(actors, story))]
    for name, state, stack in failure.stacks:
        lines += [f"  {name} {state}", *(f"    {_short(line)}" for line in stack[-6:])]
    return "\n".join(lines)


def _tell(actors: list[Actor], story: list[Switch]) -> list[str]:
    """A line for each time that a thread ran."""
    lines: list[str] = []
    width = max((len(actor.name) for actor in actors), default=0)
    last = -1
    for thread, event, where in story:
        if event == "starts":
            continue
        again = "" if thread != last else "  "
        last = thread
        at = f" {_place(where)}" if where is not None and event != "ends" else ""
        lines.append(f"{again}{actors[thread].name:<{width}} {_EVENTS.get(event, event)}{at}")
    return lines


_EVENTS = {"is stopped": "runs, and is stopped at", "waits": "runs, and waits at", "ends": "runs to its end"}


def _place(where: Place) -> str:
    code, offset, called = where
    line = _line_of(where)
    what = describe_call(called)
    if called is None:
        what = next(
            (f"{at.opname} {at.argrepr}".strip() for at in dis.get_instructions(code) if at.offset == offset), ""
        )
    source = linecache.getline(code.co_filename, line).strip()
    return f"{_short(code.co_filename)}:{line} in {code.co_qualname.rpartition('<locals>.')[2]}: {source}  [{what}]"


def _line_of(where: Place) -> int:
    found = 0
    code, offset, _ = where
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            found = line
    return found or code.co_firstlineno


def _short(path: str) -> str:
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
