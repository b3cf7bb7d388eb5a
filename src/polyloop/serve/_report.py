"""How a web server ended."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServeReport:
    """How a server ended.

    Attributes:
        requests: How many were answered.
        cut: Requests that were cancelled at the deadline of the drain.
        stuck: Loops that did not answer any more, and were left behind.
        failures: What applications and hooks had to say at their end that was not good.
    """

    requests: int = 0
    cut: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether every request was answered and everything stopped in order."""
        return not (self.cut or self.stuck or self.failures)

    def __str__(self) -> str:
        lines = [f"{self.requests} requests answered"]
        lines += [f"cancelled at the deadline: {name}" for name in self.cut]
        lines += [f"left behind, since it did not answer: {name}" for name in self.stuck]
        return "; ".join([*lines, *self.failures])
