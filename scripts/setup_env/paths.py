"""Where things are: the checkout, and what set-up keeps in the user's cache."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polyloop"


@contextmanager
def locked(name: str) -> "Iterator[None]":
    """Hold a lock between processes, so that two set-ups at once do the work once and never half of it."""
    try:
        import fcntl
    except ImportError:  # Windows: no such lock; nobody runs two set-ups at once there
        yield
        return
    (CACHE / "locks").mkdir(parents=True, exist_ok=True)
    with open(CACHE / "locks" / f"{name}.lock", "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"    waiting for another set-up that is at work on {name} …", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
