"""The process-wide hooks: interpreter exit and fork. Imported once, with ``polyloop.runtime``."""

import atexit
import os

from polyloop._core import _prims
from polyloop.runtime import _runtime
from polyloop.runtime._runtime import open_runtimes

#: Seconds that a runtime which nobody closed gets at interpreter exit.
EXIT_TIMEOUT = 2.0


def close_forgotten() -> None:
    """Close the runtimes that are still running when the interpreter exits.

    ``atexit`` hooks run after the interpreter has joined all non-daemon threads, and before it takes the others down.
    Our threads are daemons, so nothing waits for them before this hook does, with a deadline.
    """
    with _runtime.open_lock:
        forgotten = list(open_runtimes)
    for runtime in forgotten:
        runtime._close_at_exit(EXIT_TIMEOUT)


def after_fork_in_child() -> None:
    """Close the parent's runtimes in a forked child, where their threads do not exist."""
    _runtime.open_lock = _prims.Lock()
    for runtime in list(open_runtimes):
        runtime._forked()
    open_runtimes.clear()


atexit.register(close_forgotten)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork_in_child)
