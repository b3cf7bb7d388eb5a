"""Structured work over all loops: ``TaskGroup``, ``gather``, ``map``, ``as_completed``, ``race``, and task handles."""

from polyloop._core._handle import TaskHandle
from polyloop.tasks._as_completed import AsCompleted, as_completed
from polyloop.tasks._gather import gather
from polyloop.tasks._group import TaskGroup
from polyloop.tasks._map import map  # noqa: A004 - what it is called everywhere
from polyloop.tasks._map_results import MapResults
from polyloop.tasks._progress import Progress
from polyloop.tasks._race import first_success, race
from polyloop.tasks._rich import RichProgress

__all__ = (
    "AsCompleted",
    "MapResults",
    "Progress",
    "RichProgress",
    "TaskGroup",
    "TaskHandle",
    "as_completed",
    "first_success",
    "gather",
    "map",
    "race",
)
