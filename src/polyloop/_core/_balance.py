"""When steps of migratable tasks are worth moving to another worker, and how many a worker takes at once. Pure policy.

A step that is moved costs more than one that stays: what it touches has to travel between cores, and so do the counts
of references to it. So what is over before a thief would have it is left alone, however much there is of it.
"""

#: How long a worker steps its tasks before its loop gets a turn again, in nanoseconds.
SLICE_NS = 200_000

#: What waits for less than this, in nanoseconds, is better left where it is: a hop between workers takes some 10 us.
MOVE_NS = 50_000

#: Steps shorter than this, in nanoseconds, are not moved for their own sake: a task that one worker makes and another
#: runs takes some 5 us longer than one that stays.
CHEAP_NS = 10_000

#: When a slice has gone on for so long, in nanoseconds, whatever waits behind it is moved.
STUCK_NS = 5_000_000

#: Most steps between two looks at the clock, each of which takes a tenth of what the cheapest step does. Not more: they
#: may all turn out to be long.
_MOST_STEPS = 8

#: Most tasks taken in one theft.
MAX_STOLEN = 128

#: What is known of a worker's steps moves towards the last slice by one part in so many.
_INERTIA = 4


class Pace:
    """How long the steps of one worker take, as a moving average. Written by its thread, read by any.

    In whole nanoseconds, and so is what is made of them: where the interpreter does not specialise (CPython 3.13t), one
    ``+=`` of floats in each slice makes computations with integers in the tasks some 3 % slower, on the machine where
    that line alone was exchanged. Why is not known.

    Attributes:
        step_ns: Nanoseconds of one step.
        stride: How many steps to take between two looks at the clock.
        began_ns: When the slice that runs began; 0 while none does.
        behind_ns: Since when tasks wait behind something else that this worker does, as far as somebody has noticed.
    """

    __slots__ = ("began_ns", "behind_ns", "step_ns", "stride")

    def __init__(self) -> None:
        self.step_ns = 1_000
        self.stride = 1
        self.began_ns = 0
        self.behind_ns = 0

    def note(self, steps: int, took_ns: int) -> None:
        """So many steps took so long."""
        if steps:
            self.step_ns += (took_ns // steps - self.step_ns) // _INERTIA
            self.stride = max(1, min(SLICE_NS // 8 // max(self.step_ns, 1), _MOST_STEPS))

    def stuck_ns(self, now_ns: int) -> int:
        """For how long the slice that runs has gone on, or what tasks wait behind."""
        began = self.began_ns or self.behind_ns
        return now_ns - began if began else 0


def worth_moving(waiting: int, step_ns: int, stuck_ns: int) -> bool:
    """Whether some of a worker's tasks would be served sooner by another.

    Args:
        waiting: How many wait there.
        step_ns: How long the steps there take.
        stuck_ns: For how long the slice that runs there has gone on: what goes on for long goes on for longer.
    """
    if not waiting:
        return False
    if step_ns < CHEAP_NS:
        return stuck_ns >= STUCK_NS
    return waiting * step_ns >= MOVE_NS or stuck_ns >= SLICE_NS + MOVE_NS


def steal_count(waiting: int, step_ns: int, stuck_ns: int) -> int:
    """How many of a victim's ``waiting`` tasks a thief takes: half, rounded up, if it is worth it."""
    if not worth_moving(waiting, step_ns, stuck_ns):
        return 0
    return min((waiting + 1) // 2, MAX_STOLEN)
