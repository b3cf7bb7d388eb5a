"""The errors of polyloop: one small tree, each class also a builtin of the same meaning.

A class answers who must act: the runtime has ended, the worker under the task is gone, the call would block
a loop. All of them carry one message, so they pickle.
"""

import copy


class PolyloopError(Exception):
    """Base of every error that polyloop raises itself."""


class RuntimeClosedError(PolyloopError, RuntimeError):
    """The runtime is closing or closed: the work was not started and will not be."""


class NoRuntimeError(PolyloopError, RuntimeError):
    """The call needs a running polyloop runtime and the calling thread belongs to none."""


class WorkerDiedError(PolyloopError, RuntimeError):
    """The loop under this work stopped or failed before the work could end."""


class BlockingCallError(PolyloopError, RuntimeError):
    """A call that would block was made on a thread that runs an event loop."""


class UnreliableLoopError(PolyloopError, RuntimeError):
    """An event loop implementation failed the cross-thread wake-up self-test."""


class GilEnabledWarning(RuntimeWarning):
    """The GIL of a free-threaded interpreter was switched on, so loops no longer run in parallel."""


def copy_exception[E: BaseException](exc: E) -> E:
    """An equal exception with the same traceback, cause and notes; ``exc`` itself where it cannot be copied."""
    try:
        twin = copy.copy(exc)
    except Exception:
        return exc
    if type(twin) is not type(exc):
        return exc
    twin.__traceback__ = exc.__traceback__
    twin.__cause__ = exc.__cause__
    twin.__context__ = exc.__context__
    twin.__suppress_context__ = exc.__suppress_context__
    return twin
