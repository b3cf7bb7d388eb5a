"""What every benchmark shares: interleaved repeats, medians, and a word about the machine.

Two figures are only compared if they were taken in turn, within one run: a machine that slows down for a minute then
slows both.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

type Step = Callable[[], None]
"""Called after each measured piece, for progress."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much to do.

    Args:
        scale: Factor on the amount of work; 1.0 is the published amount.
        rounds: Repeats of every measurement.
        workers: The most threads or loops to use.
    """

    scale: float
    rounds: int
    workers: int

    def scaled(self, amount: int, least: int = 1) -> int:
        """Return ``amount`` times the scale, but not below ``least``."""
        return max(least, round(amount * self.scale))


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock seconds of the repeats of one measurement."""

    seconds: tuple[float, ...]
    median: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Self:
        """Keep the repeats in the order in which they were taken, and their median."""
        kept = tuple(seconds)
        return cls(kept, statistics.median(kept))

    def speedup_over(self, other: "Timing") -> float:
        """Return how many times faster this is: the median of the ratios of the runs that were taken in turn."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True))


class CheckFailedError(RuntimeError):
    """A benchmark's result is wrong, so its times mean nothing."""

    hint = "the times would mean nothing; run it again, and report it if it stays"


def interleave[K, T](cases: Mapping[K, Callable[[], T]], rounds: int, step: Step) -> dict[K, tuple[T, ...]]:
    """Run all cases once per round, forwards and backwards by turns; return each case's results in order of rounds."""
    results: dict[K, list[T]] = {key: [] for key in cases}
    order = list(cases)
    for _ in range(rounds):
        for key in order:
            results[key].append(cases[key]())
            step()
        order.reverse()
    return {key: tuple(values) for key, values in results.items()}


def worker_counts(most: int) -> tuple[int, ...]:
    """Return how many workers to measure with: all up to 8, then by doubling, and ``most`` in any case."""
    if most <= 8:
        return tuple(range(1, most + 1))
    doubled = [8 * 2**power for power in range(1, most.bit_length()) if 8 * 2**power < most]
    return (1, 2, 4, 6, 8, *doubled, most)


def check(holds: bool, message: str) -> None:
    """Raise :class:`CheckFailedError` with ``message`` unless ``holds``."""
    if not holds:
        raise CheckFailedError(message)


def same[T](values: Sequence[T]) -> bool:
    """Tell whether all values are equal."""
    return all(value == values[0] for value in values)
