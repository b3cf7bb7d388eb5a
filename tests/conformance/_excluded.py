"""Tests of CPython's that do not hold for ours, each with the design decision behind it.

``must_fail`` are run and must fail: when one passes, the run fails until it is taken off the list. ``not_run`` pass or
fail by chance, since two threads decide them, or would not end. An entry for a test that does not exist fails the run.
"""

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import pytest

type Key = tuple[str, str]  # class of the test, or flavour; its name
type Excluded = dict[Key, str]


#: What a test raises that does not hold; all else (a timeout, say) is news.
_DIFFER = (AssertionError, AttributeError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Exclusions:
    """What is excluded from one module of tests.

    Args:
        since: Versions of CPython that brought a test. 3.13.0 has those that are not here.
    """

    must_fail: Excluded = field(default_factory=dict)
    not_run: Excluded = field(default_factory=dict)
    since: dict[Key, tuple[int, ...]] = field(default_factory=dict)

    def apply(self, request: pytest.FixtureRequest, key: Key) -> None:
        """Skip a test that is not run, and mark one that must fail."""
        if (reason := self.not_run.get(key)) is not None:
            pytest.skip(reason)
        if (reason := self.must_fail.get(key)) is not None:
            request.applymarker(pytest.mark.xfail(reason=reason, raises=_DIFFER, strict=True))

    def stale(self, known: Collection[Key]) -> set[Key]:
        """The entries for tests that do not exist."""
        assert self.since.keys() <= {*self.must_fail, *self.not_run}
        here = {key for key in (*self.must_fail, *self.not_run) if sys.version_info >= self.since.get(key, (3, 13))}
        return here - set(known)


def _each[T](flavours: Iterable[str], tests: dict[str, T]) -> dict[Key, T]:
    return {(flavour, name): what for flavour in flavours for name, what in tests.items()}


# test_asyncio.test_taskgroups: see ``docs/tasks.md``. With all children on the loop of their group (flavours
# ``asyncio``, ``worker`` and their eager twins) all tests pass.

#: Flavours in which the children of a group run on other loops than the group, and those in which on several at once.
ELSEWHERE = ("elsewhere", "spread", "guest")
SEVERAL = ("spread", "guest")

_TICKS = "counts the ticks of one loop until a child on another loop has failed"
_BOTH = "wants two children to have failed in the same tick; elsewhere, the first cancels what has not begun"
_STARTED = "wants a child on another loop to have started after one tick; a child that has not is cancelled unstarted"
_FREED = (
    "wants the handle freed at once; the message of its end was made by the child's thread, and a free-threaded CPython"
    " frees an object dropped on another thread when its own next runs"
)
_COUNTS = "its children count in a shared variable without a lock, on two loops at once"

TASKGROUPS = Exclusions(
    not_run={
        **_each(
            ELSEWHERE,
            {
                "test_cancels_task_if_created_during_creation": _TICKS,
                "test_error_and_cancel": _TICKS,
                "test_nested_groups_both_cancelled": _BOTH,
                "test_taskgroup_generator_exit_03": _BOTH,
                "test_taskgroup_generator_exit_04": _TICKS,
                "test_taskgroup_25": "its children add more while another aborts the group, and are refused then",
                "test_exception_refcycles_parent_task": _FREED,
                "test_exception_refcycles_parent_task_wr": _FREED,
                "test_taskgroup_cancel_keeps_outer_cancellation": _STARTED,
                "test_taskgroup_cancel_one_winner": "wants three children to start in the order of their creation",
            },
        ),
        **_each(SEVERAL, {"test_cancellation": _COUNTS, "test_taskgroup_07": _COUNTS}),
    },
    since={
        **_each(
            ELSEWHERE,
            {
                "test_cancels_task_if_created_during_creation": (3, 13, 2),
                "test_exception_refcycles_parent_task": (3, 13, 2),
                "test_exception_refcycles_parent_task_wr": (3, 13, 2),
                "test_taskgroup_generator_exit_03": (3, 15),
                "test_taskgroup_generator_exit_04": (3, 15),
                "test_taskgroup_cancel_keeps_outer_cancellation": (3, 15),
                "test_taskgroup_cancel_one_winner": (3, 15),
            },
        )
    },
)


# The same, and test_asyncio.test_timeouts, in tasks that migrate: see ``docs/migrating.md``. Flavour ``parent``: with
# children of asyncio; ``children``: they migrate too, and so run on several loops at once, which rules out the same.

_SPREAD = {key: ("children", key[1]) for key in TASKGROUPS.not_run if key[0] == "spread"}

MIGRATING = Exclusions(
    not_run={mine: TASKGROUPS.not_run[theirs] for theirs, mine in _SPREAD.items()},
    since={mine: TASKGROUPS.since[theirs] for theirs, mine in _SPREAD.items() if theirs in TASKGROUPS.since},
)


# test_asyncio.test_locks. Its conditions are tested with an RLock, our default, and with a Lock, asyncio's.

_AT_ONCE = "a release hands the lock to the next in line at once; asyncio's stays free until the next one runs"
_WOKEN = "who is woken has left the line, while asyncio's still stand in it until they run"
_ANY_LOOP = "wants another loop to be refused; ours work across loops"
_RLOCK = "one task wants to use what another has acquired; the default lock of our Condition belongs to its owner"

ASYNCIO_LOCKS = Exclusions(
    must_fail={
        ("LockTests", "test_cancel_race"): _AT_ONCE,
        ("EventTests", "test_clear_with_waiters"): _WOKEN,
        ("ConditionTests", "test_ambiguous_loops"): _ANY_LOOP,
        ("ConditionTests", "test_wait_cancel"): _RLOCK,
        ("ConditionTests", "test_wait_cancel_contested"): _RLOCK,
        ("ConditionTests with a Lock", "test_ambiguous_loops"): _ANY_LOOP,
        ("SemaphoreTests", "test_acquire_fifo_order_2"): _AT_ONCE,
        ("SemaphoreTests", "test_acquire_fifo_order_4"): _AT_ONCE,
    },
    not_run={("ConditionTests", "test_wait"): _RLOCK + "; its tasks could then not end"},
)


# test.lock_tests

_HOLDER = "a thread that would wait for itself gets a DeadlockError, and the test would wait for it in vain"
_SHOWN = "the repr of a face is its primitive's, which is asyncio's"
_FORK = (
    "private, for threading's own use in a forked child; a child gets no locks of ours, as only the thread that forked"
    " lives on in it, and those that hold them do not"
)

THREADING_LOCKS = Exclusions(
    must_fail={
        **_each(("LockTests", "RLockTests"), {"test_repr": _SHOWN, "test_locked_repr": _SHOWN}),
        ("RLockTests", "test_repr_count"): _SHOWN,
        **_each(("EventTests", "SemaphoreTests", "BoundedSemaphoreTests", "BarrierTests"), {"test_repr": _SHOWN}),
        ("LockTests", "test_at_fork_reinit"): _FORK,
        ("EventTests", "test_at_fork_reinit"): _FORK,
    },
    not_run={("LockTests", "test_reacquire"): _HOLDER},
    since={("RLockTests", "test_repr_count"): (3, 14)},
)

# test_asyncio.test_queues

# test_asyncio.test_queues

ASYNCIO_QUEUES = Exclusions(
    must_fail={
        (
            "QueueBasicTests",
            "test_generic_alias",
        ): "ours is generic for the type system, and Queue[int] an alias of typing"
    },
)

# test_queue

_BOUND = "the bound of a queue is given once: tasks and threads of many loops rely on the room that it makes"
_HOOKS = (
    "wants _put and _get to be replaced in a subclass; ours put and get by single operations, and have no such hooks"
)

QUEUE = Exclusions(
    must_fail={
        **_each(("PyQueueTest", "PyLifoQueueTest", "PyPriorityQueueTest"), {"test_shrinking_queue": _BOUND}),
        ("PyFailingQueueTest", "test_failing_queue"): _HOOKS,
        ("CSimpleQueueTest", "test_simplequeue_sizeof"): "wants the size of a structure in C; ours has none",
    },
    since={("CSimpleQueueTest", "test_simplequeue_sizeof"): (3, 15)},
)

# test_concurrent_futures. Its tests for a pool of threads are those for all executors, and a few more.

_BY_NAME = "tests ThreadPoolExecutor itself, by its name"
_THREADS = (
    "counts the threads of one executor in a private attribute; ours has none of its own, all use the process' one pool"
)
_EXIT = (
    "starts a program that imports the class from concurrent.futures; and at exit ours leaves behind what runs, since"
    " every end is bounded, while those of the standard library wait without limit"
)

EXECUTOR = Exclusions(
    must_fail={
        ("ThreadPoolExecutorTest", "test_default_workers"): "by default the limit is that of the process' one pool",
        ("ThreadPoolExecutorTest", "test_saturation"): _THREADS,
    },
    not_run={
        ("ThreadPoolExecutorTest", "test_idle_thread_reuse"): _THREADS,
        ("ThreadPoolExecutorTest", "test_hang_global_shutdown_lock"): _BY_NAME,
        ("ThreadPoolExecutorTest", "test_process_fork_from_a_threadpool"): _BY_NAME,
    },
    since={("ThreadPoolExecutorTest", "test_process_fork_from_a_threadpool"): (3, 13, 15)},
)

SHUTDOWN = Exclusions(
    must_fail={
        ("ExecutorShutdownTest", "test_interpreter_shutdown"): _EXIT,
        ("ExecutorShutdownTest", "test_submit_after_interpreter_shutdown"): _EXIT,
        ("ExecutorShutdownTest", "test_hang_gh83386"): _EXIT,
    }
)
