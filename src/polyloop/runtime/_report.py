"""The report of a shutdown: what would not stop."""

from dataclasses import dataclass

from polyloop._core._ending import Stuck


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """How a runtime ended.

    Attributes:
        stuck: What was still running at the deadline and was left behind; empty after a clean shutdown.
    """

    stuck: tuple[Stuck, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether everything stopped in time."""
        return not self.stuck

    def __str__(self) -> str:
        if self.clean:
            return "everything stopped in time"
        return "left behind at shutdown:" + "".join(f"\n  {item}" for item in self.stuck)
