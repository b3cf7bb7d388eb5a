"""Tests of CPython's that do not hold where children run on other loops, each with its reason. See ``docs/tasks.md``.

With all children on the loop of their group (flavours ``asyncio``, ``worker`` and their eager twins) all tests pass.

``MUST_FAIL`` are run and must fail: when one passes, the run fails until it is taken off the list. ``NOT_RUN`` pass or
fail by chance, since two threads decide them.
"""

from collections.abc import Iterable

type Excluded = dict[tuple[str, str], str]

#: Flavours in which the children of a group run on other loops than the group, and those in which on several at once.
ELSEWHERE = ("elsewhere", "spread", "guest")
SEVERAL = ("spread", "guest")


def _each(flavours: Iterable[str], reasons: dict[str, str]) -> Excluded:
    return {(flavour, name): reason for flavour in flavours for name, reason in reasons.items()}


_TICKS = "counts the ticks of one loop until a child on another loop has failed"
_BOTH = "wants two children to have failed in the same tick; elsewhere, the first cancels what has not begun"
_STARTED = "wants a child on another loop to have started after one tick; a child that has not is cancelled unstarted"
_FREED = (
    "wants the handle freed at once; the message of its end was made by the child's thread, and a free-threaded CPython"
    " frees an object dropped on another thread when its own next runs"
)
_COUNTS = "its children count in a shared variable without a lock, on two loops at once"

MUST_FAIL: Excluded = {}

NOT_RUN: Excluded = {
    **_each(
        ELSEWHERE,
        {
            "test_cancels_task_if_created_during_creation": _TICKS,
            "test_error_and_cancel": _TICKS,
            "test_nested_groups_both_cancelled": _BOTH,
            "test_taskgroup_generator_exit_03": _BOTH,
            "test_taskgroup_generator_exit_04": _TICKS,
            "test_taskgroup_25": "its children add more while another thread aborts the group, and are refused then",
            "test_exception_refcycles_parent_task": _FREED,
            "test_exception_refcycles_parent_task_wr": _FREED,
            "test_taskgroup_cancel_keeps_outer_cancellation": _STARTED,
            "test_taskgroup_cancel_one_winner": "wants three children to start in the order of their creation",
        },
    ),
    **_each(SEVERAL, {"test_cancellation": _COUNTS, "test_taskgroup_07": _COUNTS}),
}
