"""The same calls on a Dask cluster: ``DaskOffload`` is an executor whose workers are other machines.

Needs the extra ``polyloop[dask]``. Dask is imported when the first executor connects, in the thread that serves it:
neither ``import polyloop`` nor ``import polyloop.distributed`` does it.

Dask's client lives in this process, on a thread and a loop of its own that nobody else touches. That keeps the freedom
of threads: with distributed 2026.8, msgpack 1.2.4, tornado 6.6.1, PyYAML 6.0.3, psutil 7.2.2 and MarkupSafe 3.0.4, all
with their C parts, ``sys._is_gil_enabled()`` is ``False`` after each of the imports on CPython 3.13.15t, and while
calls run. Older msgpack (1.1.2) and PyYAML (6.0.2) switch the GIL on; the extra asks for newer ones, and should one of
the parts do it nevertheless, a ``GilEnabledWarning`` says so.
"""

from polyloop._core._errors import ClusterError, ClusterLostError, WorkerLostError
from polyloop.distributed._offload import DaskOffload
from polyloop.distributed._shared import shared

__all__ = ("ClusterError", "ClusterLostError", "DaskOffload", "WorkerLostError", "shared")
