"""The one seam over ``threading``, ``queue`` and ``time``.

Every other module takes its locks, threads, clocks and thread identities from here (the linter bans the
imports elsewhere), so that a test replaces them in one place, and so that the two rules about threads are
kept in one place: every thread starts with an empty context, and no thread of ours is joined without limit
at interpreter exit.
"""

import atexit
import contextvars
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Lock = threading.Lock
RLock = threading.RLock
Condition = threading.Condition
Thread = threading.Thread
local = threading.local

BrokenBarrierError = threading.BrokenBarrierError

QueueEmpty = queue.Empty
QueueFull = queue.Full
QueueShutDown = queue.ShutDown

TIMEOUT_MAX = threading.TIMEOUT_MAX

get_ident = threading.get_ident
main_thread = threading.main_thread
current_thread = threading.current_thread

monotonic = time.monotonic
monotonic_ns = time.monotonic_ns
thread_time_ns = time.thread_time_ns
wall_time = time.time  # for what people read; never to measure with
local_time = time.localtime
sleep = time.sleep

_THREAD_TAKES_CONTEXT = sys.version_info >= (3, 14)


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread of polyloop's own with an empty context.

    On 3.14t a thread would otherwise start with a copy of its starter's context and keep the starter's
    context variables alive for as long as it lives (gh-128555).

    The thread is a daemon. polyloop joins its threads itself, with a deadline, in ``Runtime.close`` and in an
    ``atexit`` hook; a non-daemon thread that is stuck in user code would hold the interpreter open for ever
    after that deadline (gh-111358).
    """
    options: dict[str, Any] = {"context": contextvars.Context()} if _THREAD_TAKES_CONTEXT else {}
    thread = threading.Thread(target=target, name=name, daemon=True, **options)
    thread.start()
    return thread


def before_threads_end(hook: Callable[[], object]) -> None:
    """Call ``hook`` at interpreter exit before anybody waits for threads; the hook that was given last goes first.

    ``concurrent.futures`` waits for its threads and processes there, without limit; ``atexit`` is too late for that.
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    register(hook)


def is_main_thread() -> bool:
    """Whether the caller runs on the interpreter's main thread (the one that runs signal handlers)."""
    return threading.get_ident() == threading.main_thread().ident


def gil_enabled() -> bool:
    """Whether the GIL is on at this moment; it can be switched on by an import of an extension module."""
    probe = getattr(sys, "_is_gil_enabled", None)
    return True if probe is None else bool(probe())


def usable_cores() -> int:
    """Number of cores that this process may use (affinity and ``PYTHON_CPU_COUNT`` respected)."""
    return os.process_cpu_count() or 1
