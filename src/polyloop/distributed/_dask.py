"""The one seam over Dask: its packages are imported here, and have no types beyond this file."""

import importlib
import importlib.util
import warnings
from typing import Any, NamedTuple

from polyloop._core import _prims
from polyloop._core._errors import GilEnabledWarning


class Dask(NamedTuple):
    """What we use of it."""

    Client: Any
    CancelledError: type[BaseException]  # of a future; asyncio's or concurrent.futures', as the version has it
    KilledWorker: type[Exception]


def require() -> None:
    """Raise unless Dask is installed; imports nothing.

    Raises:
        ModuleNotFoundError: it is not.
    """
    if importlib.util.find_spec("distributed") is None:
        raise ModuleNotFoundError(
            "DaskOffload needs the package 'distributed', which is not installed; install 'polyloop[dask]'",
            name="distributed",
        )


def load() -> Dask:
    """Import Dask, which takes a second or two the first time."""
    free = not _prims.gil_enabled()
    client: Any = importlib.import_module("distributed.client")
    scheduler: Any = importlib.import_module("distributed.scheduler")
    if free and _prims.gil_enabled():
        warnings.warn(
            "the import of Dask switched the GIL on: from now on threads take turns on one core; upgrade its parts"
            " (msgpack 1.2, PyYAML 6.0.3 and later do without), or set PYTHON_GIL=0 if you know them to be safe",
            GilEnabledWarning,
            stacklevel=2,
        )
    return Dask(client.Client, client.FutureCancelledError, scheduler.KilledWorker)
