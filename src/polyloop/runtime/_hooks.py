"""The process-wide hooks: interpreter exit and fork. Imported once, with ``polyloop.runtime``."""

import atexit
import os

from polyloop._core import _prims
from polyloop.runtime import _registry

#: Seconds that the runtimes which nobody closed get at interpreter exit, all together.
EXIT_TIMEOUT = 2.0


def close_forgotten() -> None:
    """Close the runtimes that are still running when the interpreter exits.

    ``atexit`` hooks run after the interpreter has joined all non-daemon threads, and before it takes the others down.
    Our threads are daemons, so nothing waits for them before this hook does, with a deadline.
    """
    deadline = _prims.monotonic() + EXIT_TIMEOUT
    for runtime in _registry.running():
        runtime._close_at_exit(deadline)


def after_fork_in_child() -> None:
    """Close the parent's runtimes in a forked child, where their threads do not exist."""
    for runtime in _registry.running():
        runtime._forked()


atexit.register(close_forgotten)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork_in_child)
