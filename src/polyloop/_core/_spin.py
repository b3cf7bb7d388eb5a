"""Whether to spin before sleeping, and for how long: a pure policy and the process-wide cap.

A hop between two threads costs 10 to 35 us when the receiver sleeps in the kernel and about 1 us when it is still
looking at its mailbox. So a worker about to sleep looks for a while first, if that has been paying off. Like Go's
scheduler, which caps its spinning threads for the same reason, spinning is bounded in time and in number.
"""

from collections import deque

from polyloop._core import _prims

#: How long one spin lasts at most. A kernel wake-up takes 5 us on a quiet machine and 34 us on a noisy one
#: (docs/design.md section 5); spinning for longer than it saves cannot pay.
SPIN_NS = 50_000

#: A sleep that a post ended this soon would perhaps have been worth a spin: SPIN_NS plus the wake-up it cost.
_SHORT_SLEEP_NS = 2 * SPIN_NS

#: A spin that ran this much longer than asked was preempted: no core is idle, and spinning takes one from others.
_PREEMPTED_FACTOR = 4

#: Most sleeps taken without a spin after a miss: 50 us in 256 sleeps is 0.2 us a sleep, lost in the price of the sleep.
_MAX_PENALTY = 256

#: A short sleep counts as this many towards the next try. It is a hint and no proof: where no core is idle every sleep
#: is short, because sleeping made room for the other thread, and every spin fails, because spinning does not.
_SHORT_SLEEP_CREDIT = 8


class SpinPolicy:
    """Decides from its own hit rate whether the next sleep is preceded by a spin. Pure; one thread.

    A miss doubles the number of sleeps taken without a spin, a hit halves it and spins on.

    Args:
        spin_ns: Length of one spin in nanoseconds; 0 turns spinning off.
    """

    __slots__ = ("_penalty", "_skip", "spin_ns")

    def __init__(self, spin_ns: int) -> None:
        self.spin_ns = spin_ns
        self._penalty = 1  # sleeps without a spin after the next miss
        self._skip = 0  # sleeps still to be taken without a spin

    def next_spin_ns(self) -> int:
        """How long to spin before the sleep that is about to begin; 0 for not at all."""
        if self._skip > 0:
            self._skip -= 1
            return 0
        return self.spin_ns

    def hit(self) -> None:
        """The spin found work."""
        self._penalty = max(1, self._penalty // 2)

    def miss(self, took_ns: int) -> None:
        """The spin found nothing and took ``took_ns`` nanoseconds of wall time."""
        preempted = took_ns > _PREEMPTED_FACTOR * self.spin_ns
        self._penalty = _MAX_PENALTY if preempted else min(2 * self._penalty, _MAX_PENALTY)
        self._skip = self._penalty

    def woken(self, slept_ns: int) -> None:
        """A post ended a sleep after ``slept_ns``."""
        if slept_ns < _SHORT_SLEEP_NS:
            self._skip -= _SHORT_SLEEP_CREDIT


def spin_ns_for(spin: bool | float | None) -> int:
    """Translate the public ``spin=`` option (seconds, a switch, or ``None`` for the default) to nanoseconds.

    Raises:
        ValueError: a negative or unreasonably long time (over 10 ms).
    """
    if spin is None:
        return 0 if _prims.gil_enabled() or _prims.usable_cores() < 2 else SPIN_NS
    if spin is True:
        return SPIN_NS
    if not 0 <= spin <= 0.01:
        raise ValueError(f"spin is a time in seconds between 0 and 0.01, or a bool; got {spin!r}")
    return int(spin * 1e9)


#: One permit per usable core: never more spinners than cores, over all runtimes and the offload pool of the process.
#: Popped by a thread that begins to spin, put back when it ends; a thread that finds none goes to sleep at once.
spin_permits: deque[None] = deque([None] * _prims.usable_cores())
