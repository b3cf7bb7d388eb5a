"""A pipeline of channels over a thread and two loops: lines come in, workers count words, everybody follows.

A plain thread reads lines into a ``channel``, workers on both loops share them, a ``broadcast`` tells two followers of
each result, one of them a thread, and a ``watch`` holds the total. Each part knows only its ends, and closes them.
"""

import threading

import polyloop
from polyloop.queues import BroadcastReceiver, BroadcastSender, Receiver, Sender, WatchSender, broadcast, channel, watch

LINES = [f"line {number} " + "word " * (number % 7) for number in range(500)]
WORDS = sum(len(line.split()) for line in LINES)


def read(lines: Sender[str]) -> None:
    """A plain thread: the capacity of the channel makes it wait for the workers."""
    with lines:
        for line in LINES:
            lines.sync.send(line)


async def count(lines: Receiver[str], counts: BroadcastSender[int]) -> int:
    """A worker; there are several."""
    done = 0
    async with lines, counts:
        async for line in lines:
            counts.send(len(line.split()))
            done += 1
    return done


async def add_up(counts: BroadcastReceiver[int], total: WatchSender[int]) -> None:
    """A follower on a loop."""
    async with counts, total:
        async for words in counts:
            total.send(total.value + words)


def find_longest(counts: BroadcastReceiver[int], found: list[int]) -> None:
    """A follower on a thread."""
    with counts:
        found.append(max(counts.sync))


async def main() -> None:
    lines, to_count = channel[str](10)
    counts, to_add = broadcast[int](len(LINES))
    total, progress = watch(0)
    longest: list[int] = []
    threads = [
        threading.Thread(target=read, args=(lines,)),
        threading.Thread(target=find_longest, args=(counts.subscribe(), longest)),
    ]
    for thread in threads:
        thread.start()
    async with polyloop.TaskGroup() as group:
        adding = group.create_task(add_up(to_add, total))
        with to_count, counts:  # main's own ends: when they are closed, those of the workers count
            workers = [group.create_task(count(to_count.clone(), counts.clone())) for _ in range(4)]
        words = await progress.wait_for(lambda value: value == WORDS)
        await adding
    for thread in threads:
        await polyloop.to_thread(thread.join)
    shares = [await worker for worker in workers]
    assert sum(shares) == len(LINES)
    assert longest == [8]
    print(f"{words} words in {len(LINES)} lines, counted by {len(shares)} workers; the longest line has {longest[0]}")


polyloop.run(main(), loops=2)
