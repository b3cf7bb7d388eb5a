"""The errors of polyloop: one small tree, each class also a builtin of the same meaning.

A class answers who must act: the runtime has ended, the worker under the task is gone, the call would block
a loop. All of them carry one message, so they pickle.
"""

import asyncio
from typing import Any, NamedTuple

from polyloop._core import _prims


class PolyloopError(Exception):
    """Base of every error that polyloop raises itself."""


class RuntimeClosedError(PolyloopError, RuntimeError):
    """The runtime is closing or closed: the work was not started and will not be."""


class NoRuntimeError(PolyloopError, RuntimeError):
    """The call needs a running polyloop runtime and the calling thread belongs to none."""


class WorkerDiedError(PolyloopError, RuntimeError):
    """The loop under this work stopped or failed before the work could end."""


class BlockingCallError(PolyloopError, RuntimeError):
    """A call that would block was made on a thread that runs an event loop.

    Attributes:
        items_put: How many items a ``put_many`` had put before.
    """

    items_put = 0


class DeadlockParty(NamedTuple):
    """One of those who would wait for one another for ever.

    Attributes:
        who: The names of the task, if it is one, and of the thread.
        holds: The lock that the one before it in the cycle waits for.
        taken_at: Where it took that: file, line and function, and where that was called.
        waits_for: The lock that the next in the cycle holds.
        waits_at: Where it waits, or would have waited.
    """

    who: str
    holds: str
    taken_at: str
    waits_for: str
    waits_at: str


class DeadlockError(PolyloopError, RuntimeError):
    """A task or thread would wait for a lock that it holds itself, or in a cycle of such waits.

    Attributes:
        cycle: For locks in debug mode, all who would wait for one another; the first is the one whose wait was refused.
    """

    cycle: tuple[DeadlockParty, ...] = ()


class BrokenBarrierError(PolyloopError, asyncio.BrokenBarrierError, _prims.BrokenBarrierError):
    """The barrier was broken, or reset under those who waited. Both ``asyncio``'s and ``threading``'s error."""


class BusyResourceError(PolyloopError, RuntimeError):
    """Somebody else uses at this moment what only one may use at a time."""


class UnreliableLoopError(PolyloopError, RuntimeError):
    """An event loop implementation failed the cross-thread wake-up self-test."""


class QueueEmpty(PolyloopError, asyncio.QueueEmpty, _prims.QueueEmpty):
    """A ``_nowait`` or timed call found no item. Both ``asyncio.QueueEmpty`` and ``queue.Empty``; a signal."""


class QueueFull(PolyloopError, asyncio.QueueFull, _prims.QueueFull):
    """A ``_nowait`` or timed call found no room. Both ``asyncio.QueueFull`` and ``queue.Full``; a signal.

    Attributes:
        items_put: How many items a ``put_many`` had put before; always from the beginning.
    """

    items_put = 0


class QueueShutDown(PolyloopError, asyncio.QueueShutDown, _prims.QueueShutDown):
    """The queue was shut down. Both ``asyncio.QueueShutDown`` and ``queue.ShutDown``; a signal.

    Attributes:
        items_put: How many items a ``put_many`` had put before; always from the beginning.
    """

    items_put = 0


class ChannelClosed(QueueShutDown):
    """The other side of a channel is closed: nothing will come, or nobody will receive. A signal, as its base."""


class ClosedEndError(PolyloopError, RuntimeError):
    """The end of a channel that was used is closed itself."""


class Lagged(PolyloopError):
    """A receiver of a broadcast was too slow, and values were overwritten that it had not received; a signal.

    Args:
        missed: How many.
    """

    def __init__(self, missed: int) -> None:
        super().__init__(missed)

    @property
    def missed(self) -> int:
        """How many values were missed."""
        missed: int = self.args[0]
        return missed

    def __str__(self) -> str:
        return f"{self.missed} values were overwritten before this receiver came to them"


class ClusterError(PolyloopError, ConnectionError):
    """A call could not be run on a cluster, for a reason that is the cluster's and not the call's."""


class WorkerLostError(ClusterError):
    """Workers of a cluster died under a call, more often than the scheduler lets it be tried again."""


class ClusterLostError(ClusterError):
    """The scheduler of a cluster is gone, and with it every call that was not done."""


class ServerStartError(PolyloopError, RuntimeError):
    """A server could not start: its application could not be made, or refused to start. Nothing is left running."""


class PoolClosedError(PolyloopError, RuntimeError):
    """The pool is draining or closed, and lends nothing more."""


class PoolBusyError(PolyloopError, RuntimeError):
    """As many callers wait for the pool as it lets wait: ``max_waiting``. Nothing was taken."""


class ForeignLoopError(PolyloopError, RuntimeError):
    """Something that belongs to one loop was used on another.

    Attributes:
        owner: Name of the loop that it belongs to.
        user: Name of the loop, or of the thread without one, that used it.
        made_at: Where it was made: file, line and function; empty where that is not known.
    """

    owner = ""
    user = ""
    made_at = ""


class GilEnabledWarning(RuntimeWarning):
    """The GIL of a free-threaded interpreter was switched on, so loops no longer run in parallel."""


def copy_exception[E: BaseException](exc: E) -> E:
    """An equal exception with the same traceback, cause and notes; ``exc`` itself where it cannot be copied.

    The parts of it that the interpreter knows are copied by the builtin class under it, and its attributes one by one.
    No constructor of a user runs: it may want other arguments than it handed on, or do more than construct. The members
    of a group are copied too: ``except*`` raises them.
    """
    kind = type(exc)
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    try:
        _, args, *state = builtin.__reduce__(exc)
        if issubclass(kind, BaseExceptionGroup):
            args = (args[0], [copy_exception(member) for member in args[1]])
        twin: E = builtin.__new__(kind, *args)
        builtin.__init__(twin, *args)
        for attributes in (*state, _slots(exc)):
            for name, value in (attributes or {}).items():
                setattr(twin, name, value.copy() if name == "__notes__" else value)
        twin.__traceback__ = exc.__traceback__
        twin.__cause__ = exc.__cause__
        twin.__context__ = exc.__context__
        twin.__suppress_context__ = exc.__suppress_context__
    except Exception:  # of a __setattr__ that refuses, too
        return exc
    return twin


def _slots(exc: BaseException) -> dict[str, Any]:
    names = [name for base in type(exc).__mro__ for name in vars(base).get("__slots__", ())]
    return {name: getattr(exc, name) for name in names if hasattr(exc, name)} if names else {}
