"""Tools for tests of code that lives on several loops and threads: force an order instead of hoping for it.

``explore`` runs the threads of a scenario in every order that matters. ``TestLoop`` is a loop in a thread of its own
that a test can hold still and wait for; ``FakeClock`` gives such loops virtual time; ``Sequencer`` and ``Gate`` order
the steps of plain threads; ``TestThread`` is a thread whose exception reaches the test. They need no test framework.
"""

from polyloop.testing._blocked import wait_all_blocked
from polyloop.testing._clock import FakeClock
from polyloop.testing._explore import Explored, explore
from polyloop.testing._explore_errors import ExplorationError, ScheduleError
from polyloop.testing._explore_scenario import InterleavedTask, InterleavedThread, Interleaving
from polyloop.testing._loop import TestLoop
from polyloop.testing._steps import Gate, Sequencer
from polyloop.testing._thread import TestThread

__all__ = (
    "ExplorationError",
    "Explored",
    "FakeClock",
    "Gate",
    "InterleavedTask",
    "InterleavedThread",
    "Interleaving",
    "ScheduleError",
    "Sequencer",
    "TestLoop",
    "TestThread",
    "explore",
    "wait_all_blocked",
)
