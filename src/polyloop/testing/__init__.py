"""Tools for tests of code that lives on several loops and threads: force an order instead of hoping for it.

``TestLoop`` is a loop in a thread of its own that a test can hold still and wait for; ``FakeClock`` gives such loops
virtual time; ``Sequencer`` and ``Gate`` order the steps of plain threads; ``TestThread`` is a thread whose exception
reaches the test. They need no test framework.
"""

from polyloop.testing._blocked import wait_all_blocked
from polyloop.testing._clock import FakeClock
from polyloop.testing._loop import TestLoop
from polyloop.testing._steps import Gate, Sequencer
from polyloop.testing._thread import TestThread

__all__ = ("FakeClock", "Gate", "Sequencer", "TestLoop", "TestThread", "wait_all_blocked")
