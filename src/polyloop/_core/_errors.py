"""The errors of polyloop: one small tree, each class also a builtin of the same meaning.

A class answers who must act: the runtime has ended, the worker under the task is gone, the call would block
a loop. All of them carry one message, so they pickle.
"""


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
