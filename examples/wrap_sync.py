"""Make async functions of sync ones with ``async_wrap``: they run in threads and no longer hold up a loop.

``limit`` bounds how many calls of one function run at the same time, over all loops.
"""

import hashlib
import threading

import polyloop

threads: set[threading.Thread] = set()


@polyloop.async_wrap
def digest(data: bytes) -> str:
    """Sync work that would block its loop."""
    return hashlib.sha256(data * 1000).hexdigest()


class Ledger:
    """A sync class of which one method is wrapped."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    @polyloop.async_wrap(limit=2)
    def enter(self, name: str) -> int:
        threads.add(threading.current_thread())
        self.entries.append(name)
        return len(name)


async def main() -> None:
    digests = await polyloop.gather(*(digest(bytes([number])) for number in range(8)))
    assert digests == [hashlib.sha256(bytes([number]) * 1000).hexdigest() for number in range(8)]

    ledger = Ledger()
    names = [f"entry {number}" for number in range(17)]
    lengths = await polyloop.gather(*(ledger.enter(name) for name in names))
    assert lengths == [len(name) for name in names]
    assert sorted(ledger.entries) == sorted(names)
    assert len(threads) <= 2
    print(f"{len(digests)} digests, and {len(ledger.entries)} entries made by {len(threads)} thread(s)")


polyloop.run(main())
