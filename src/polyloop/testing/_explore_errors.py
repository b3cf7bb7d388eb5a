"""The errors of an exploration."""

from polyloop._core._errors import PolyloopError


class ExplorationError(PolyloopError, AssertionError):
    """An interleaving of the scenario failed. The message shows what happened and how to see it again.

    The exception of the thread or check is its ``__cause__``.

    Attributes:
        schedule: The interleaving, for ``explore(scenario, replay=...)``; valid as long as the code is the same.

    .. versionadded:: 0.2
    """

    schedule: str = ""


class ScheduleError(PolyloopError, RuntimeError):
    """The scenario did not do the same when the same choices were made, or a replayed schedule is of other code.

    .. versionadded:: 0.2
    """
