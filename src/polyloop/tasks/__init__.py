"""Structured work over all loops: ``TaskGroup``, ``gather``, ``map`` and the handle of a task."""

from polyloop._core._handle import TaskHandle
from polyloop.tasks._gather import gather
from polyloop.tasks._group import TaskGroup
from polyloop.tasks._map import map  # noqa: A004 - as the builtin, for results that are awaited
from polyloop.tasks._map_results import MapResults
from polyloop.tasks._progress import Progress

__all__ = ("MapResults", "Progress", "TaskGroup", "TaskHandle", "gather", "map")
