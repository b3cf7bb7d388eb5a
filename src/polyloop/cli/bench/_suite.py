"""The benchmarks by name, run one after the other, the machine measured between them. Needs the extra ``[bench]``."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polyloop.cli._environment import Cores, Interpreter, describe_cores, describe_interpreter
from polyloop.cli._scaling import MachineProbe
from polyloop.cli.bench import _cpu, _crawl, _fetch, _threads
from polyloop.cli.bench._measure import Size, Step
from polyloop.cli.bench._panels import Result

SCHEMA = "polyloop-bench/1"
NAMES = ("cpu", "fetch", "threads", "crawl")
_PROBES = 3  # before and after each benchmark
_BUSY = 1.7


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that one ``polyloop bench`` measured."""

    interpreter: Interpreter
    cores: Cores
    sizes: Mapping[str, Size]
    machine: float | None
    """Two processes over one, as the median of probes between the benchmarks; None on one core."""
    results: Mapping[str, Result]

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as plain data; ``docs/cli.md`` describes it."""
        environment = {"interpreter": asdict(self.interpreter), "cores": asdict(self.cores), "machine": self.machine}
        sizes = {name: asdict(self.sizes[name]) for name in self.results}
        results = {name: asdict(result) for name, result in self.results.items()}
        return {"schema": SCHEMA, "environment": environment, "sizes": sizes, "results": results}

    def remarks(self) -> Iterator[str]:
        """Say what a reader must know to judge the speed-ups."""
        if self.interpreter.gil_enabled:
            why = "this is a GIL build" if self.interpreter.build == "GIL" else "the GIL is on, see 'polyloop doctor'"
            yield f"no gain from threads is to be expected: {why}, and only one thread at a time runs Python code"
        elif self.cores.usable < 2:
            yield "no gain from threads is to be expected: this process may use only one core"
        if self.machine is not None:
            busy = "; it was busy, so no speed-up of two could reach 2" if self.machine < _BUSY else ""
            yield f"meanwhile the machine ran two processes {self.machine:.2f}x as fast as one{busy}"


def total_steps(names: Sequence[str], sizes: Mapping[str, Size]) -> int:
    """Return how often :func:`run_suite` will call its step."""
    steps: dict[str, Callable[[Size], int]] = {
        "cpu": _cpu.steps, "fetch": _fetch.steps, "threads": _threads.steps, "crawl": _crawl.steps,
    }  # fmt: skip
    return sum(steps[name](sizes[name]) for name in names)


def run_suite(
    names: Sequence[str], sizes: Mapping[str, Size], urls: Sequence[str], begin: Callable[[str], None], step: Step
) -> Outcome:
    """Run the named benchmarks.

    Args:
        names: Out of :data:`NAMES`, in the order wanted.
        sizes: How much each is to do.
        urls: For ``fetch``; the embedded site if empty.
        begin: Called with the name before each benchmark.
        step: Called after each measured piece.
    Raises:
        CheckFailedError: a result is wrong.
    """
    measures: dict[str, Callable[[Size, Step], Result]] = {
        "cpu": _cpu.measure,
        "fetch": lambda size, step: _fetch.measure(size, step, urls),
        "threads": _threads.measure,
        "crawl": _crawl.measure,
    }
    cores = describe_cores()
    machine: list[float] = []
    results: dict[str, Result] = {}
    for name in names:
        begin(name)
        machine += _probe(cores)
        results[name] = measures[name](sizes[name], step)
    machine += _probe(cores)
    ratio = statistics.median(machine) if machine else None
    return Outcome(describe_interpreter(), cores, sizes, ratio, results)


def _probe(cores: Cores) -> list[float]:
    """Measure the machine between the benchmarks; the helpers are gone while a benchmark runs."""
    if cores.usable < 2:
        return []
    with MachineProbe() as probe:
        return [probe.ratio() for _ in range(_PROBES)]
