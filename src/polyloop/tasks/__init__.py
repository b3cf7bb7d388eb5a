"""Structured work over all loops: ``TaskGroup``, ``gather`` and the handle of a task."""

from polyloop._core._handle import TaskHandle
from polyloop.tasks._gather import gather
from polyloop.tasks._group import TaskGroup

__all__ = ("TaskGroup", "TaskHandle", "gather")
