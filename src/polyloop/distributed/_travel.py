"""How calls, results and exceptions travel: pickled by us, so that what does not pickle fails its own call only.

Dask pickles too, but not what we need: it cuts long messages and drops long tracebacks (10,000 bytes), replaces an
exception whose constructor takes other arguments than it hands on, and does not send causes. Here an exception comes
back as the object it was: type, arguments, attributes, notes, cause, context, members of a group, and for each of them
the frames of the worker.

Importing this file imports Dask's packages for pickling.
"""

import importlib
import io
import pickle
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from polyloop._core._errors import ClusterError, _slots

# Without types of their own; `_dask` says why they are there.
_cloudpickle: Any = importlib.import_module("cloudpickle")
_tblib: Any = importlib.import_module("tblib.pickling_support")

#: Characters of the message of a failure that Dask's own logs and pages show; it cuts at 10,000 bytes.
_SUMMARY = 1000

#: Characters of a traceback as text, kept for the case that the exception itself cannot be brought back.
_TEXT = 100_000

dumps: Callable[[object], bytes] = _cloudpickle.dumps
loads: Callable[[bytes], Any] = pickle.loads


class Failure(Exception):
    """The exception of a call on its way back: for Dask to count and try again, a task has to fail itself.

    Args:
        packed: The exception, pickled.
        summary: What Dask shows of it.
        text: The exception and its traceback as text.
    """

    def __init__(self, packed: bytes, summary: str, text: str) -> None:
        super().__init__(packed, summary, text)

    def __str__(self) -> str:
        return str(self.args[1])

    def unpack(self) -> BaseException:
        """The exception; a ``ClusterError`` that describes it if it cannot be brought back here."""
        packed, summary, text = self.args
        try:
            exc = loads(packed)
        except BaseException as reason:  # of code of the user's
            error = ClusterError(f"a call failed on the cluster, and its exception cannot be loaded here: {summary}")
            error.add_note(text)
            error.__cause__ = reason
            return error
        return exc if isinstance(exc, BaseException) else ClusterError(summary)


def pack(exc: BaseException) -> Failure:
    """Make an exception ready to travel. On the worker."""
    summary = traceback.format_exception_only(exc)[-1].strip()[:_SUMMARY]
    text = "".join(traceback.format_exception(exc))[-_TEXT:]
    try:
        packed = _dump(exc)
        loads(packed)
    except Exception as reason:
        packed = _dump(_stand_in(exc, reason))
    return Failure(packed, summary, text)


def _dump(exc: BaseException) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(exc)
    return file.getvalue()


_Base: Any = _cloudpickle.Pickler


class _Pickler(_Base):  # type: ignore[misc]  # without types, as all that is Dask's
    """Pickles exceptions whole, and tracebacks as the file names, lines and functions in them."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException):
            return _reduce(obj)
        if isinstance(obj, TracebackType):
            return _tblib.pickle_traceback(obj)
        return _Base.reducer_override(self, obj)


def _reduce(exc: BaseException) -> tuple[Any, ...]:
    """As ``object.__reduce_ex__``, with what pickle leaves out. The state is set last: it may lead back to ``exc``."""
    kind: Any = type(exc)
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    make: Any
    if kind.__reduce__ is builtin.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        _, args, *state = builtin.__reduce__(exc)
        make, arguments = _make, (kind, builtin, args)
    else:  # it knows better than we how it is made
        make, arguments, *state = kind.__reduce_ex__(exc, pickle.HIGHEST_PROTOCOL)
    attributes: dict[str, Any] = {**((state[0] if state else None) or {}), **_slots(exc)}
    around = (exc.__traceback__, exc.__cause__, exc.__context__, exc.__suppress_context__)
    return make, arguments, (attributes, around), None, None, _set_state


def _make(kind: type[BaseException], builtin: Any, args: tuple[Any, ...]) -> BaseException:
    """By the builtin class under it: its own constructor may want other arguments, or do more than construct."""
    exc: BaseException = builtin.__new__(kind, *args)
    builtin.__init__(exc, *args)
    return exc


def _set_state(exc: BaseException, state: tuple[dict[str, Any], tuple[Any, Any, Any, bool]]) -> None:
    attributes, (trace, cause, context, suppress) = state
    for name, value in attributes.items():
        setattr(exc, name, value)
    exc.__traceback__ = trace
    exc.__cause__ = cause
    exc.__context__ = context
    exc.__suppress_context__ = suppress


def _stand_in(exc: BaseException, reason: Exception) -> BaseException:
    """The nearest builtin exception, for one that does not pickle."""
    builtin: Any = next(base for base in type(exc).__mro__ if base.__module__ == "builtins")
    try:
        twin: BaseException = builtin(str(exc))
    except Exception:  # one that is more than a message, such as a group
        twin = RuntimeError(str(exc))
    kind = type(exc)
    twin.add_note(f"stands for a {kind.__module__}.{kind.__qualname__} that does not pickle: {reason!r}")
    for note in getattr(exc, "__notes__", ()):
        twin.add_note(str(note))
    return twin.with_traceback(exc.__traceback__)
