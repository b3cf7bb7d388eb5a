"""From sync code that runs for a task, on a thread, back to its loop: ``polyloop.from_thread.run(fetch, url)``.

Named after ``anyio.from_thread``, and used like it.
"""

from polyloop._core._scope import check_cancelled, shield
from polyloop.offload._from_thread import run, run_sync

__all__ = ("check_cancelled", "run", "run_sync", "shield")
