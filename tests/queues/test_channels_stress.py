"""Races by chance: channels and selects between many loops and threads, every item counted.

The seed is printed; ``POLYLOOP_SEED`` repeats a run as far as the scheduler of the operating system lets it.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from polyloop import Queue, QueueEmpty, QueueFull, Runtime, TaskHandle
from polyloop.queues import (
    BroadcastReceiver,
    BroadcastSender,
    ChannelClosed,
    Lagged,
    Receiver,
    Sender,
    WatchReceiver,
    WatchSender,
    broadcast,
    channel,
    oneshot,
    select,
    select_sync,
    watch,
)
from polyloop.testing import TestThread

PATIENCE = 60.0
LOOPS = 4

#: A producer and the number of the item among its own.
type Item = tuple[int, int]
type Actor = TaskHandle[None] | TestThread[None]


@dataclass
class Book:
    """What one producer or consumer did. Written by it alone, read when it has ended."""

    items: list[Item] = field(default_factory=list)
    given_up: int = 0  # waits that were cancelled or timed out
    missed: int = 0  # values of a broadcast


def tiny(rng: random.Random) -> float | None:
    """A time to wait at most: usually none, else too short to be sure of anything."""
    return rng.choice((None, None, None, 0.0, rng.random() * 0.001))


class Troupe:
    """The tasks and threads of one round."""

    def __init__(self, runtime: Runtime, rng: random.Random) -> None:
        self.runtime = runtime
        self.rng = rng
        self.actors: list[Actor] = []

    def add(self, task: Any, thread: Any, *args: Any) -> Actor:
        own = random.Random(self.rng.random())
        if self.rng.random() < 0.7:
            actor: Actor = self.runtime.spawn(task, *args, own, on=self.rng.choice(self.runtime.workers))
        else:
            actor = TestThread(thread, *args, own, timeout=PATIENCE)
        self.actors.append(actor)
        return actor

    def end(self) -> None:
        for actor in self.actors:
            if isinstance(actor, TestThread):
                actor.result()
                continue
            try:
                actor.result(PATIENCE)
            except asyncio.CancelledError:
                pass


# channel, and select over two of them and a queue


async def produce(sender: Sender[Item], number: int, count: int, book: Book, rng: random.Random) -> None:
    with sender:
        n = 0
        while n < count:
            try:
                if rng.randrange(8) == 0:
                    sender.send_nowait((number, n))
                else:
                    async with asyncio.timeout(tiny(rng)):
                        await sender.send((number, n))
            except (QueueFull, TimeoutError):
                book.given_up += 1
                await asyncio.sleep(0)
                continue
            except ChannelClosed:
                return
            book.items.append((number, n))
            n += 1


def produce_on_thread(sender: Sender[Item], number: int, count: int, book: Book, rng: random.Random) -> None:
    with sender:
        n = 0
        while n < count:
            try:
                sender.sync.send((number, n), tiny(rng))
            except QueueFull:
                book.given_up += 1
                continue
            except ChannelClosed:
                return
            book.items.append((number, n))
            n += 1


async def consume(receivers: list[Receiver[Item]], book: Book, rng: random.Random) -> None:
    try:
        while True:
            try:
                async with asyncio.timeout(tiny(rng)):
                    if len(receivers) > 1:
                        item = (await select(*receivers)).item
                    else:
                        item = await receivers[0].receive()
            except TimeoutError:
                book.given_up += 1
                await asyncio.sleep(0)
                continue
            book.items.append(item)
            if rng.random() < 0.01:
                await asyncio.sleep(0)
    except ChannelClosed:
        pass
    except asyncio.CancelledError:
        book.given_up += 1
        raise
    finally:
        for receiver in receivers:
            receiver.close()


def consume_on_thread(receivers: list[Receiver[Item]], book: Book, rng: random.Random) -> None:
    try:
        while True:
            timeout = tiny(rng)
            try:
                if len(receivers) > 1:
                    item = select_sync(*receivers, timeout=timeout).item
                else:
                    item = receivers[0].sync.receive(timeout)
            except QueueEmpty:
                book.given_up += 1
                continue
            book.items.append(item)
    except ChannelClosed:
        pass
    finally:
        for receiver in receivers:
            receiver.close()


def race_channels(runtime: Runtime, rng: random.Random, count: int) -> Counter[str]:
    """Two channels; each consumer has a receiver of one of them, or selects from both. Some consumers are cancelled."""
    ends = [channel[Item](rng.choice((1, 2, 16, float("inf")))) for _ in range(2)]
    troupe = Troupe(runtime, rng)
    put: list[Book] = []
    got: list[Book] = []
    clones: list[Receiver[Item]] = []

    def add_consumer(which: list[int]) -> Actor:
        got.append(Book())
        own = [ends[i][1].clone() for i in which]
        clones.extend(own)  # a task that is cancelled before it begins closes nothing
        return troupe.add(consume, consume_on_thread, own, got[-1])

    consumers = [add_consumer([0]), add_consumer([1]), add_consumer([0, 1])]
    consumers += [add_consumer(rng.choice(([0], [1], [0, 1], [1, 0]))) for _ in range(rng.randrange(4))]
    for number in range(rng.randrange(2, 7)):
        put.append(Book())
        troupe.add(produce, produce_on_thread, ends[number % 2][0].clone(), number, count, put[-1])
    for _ in range(rng.randrange(3)):
        doomed = rng.choice(consumers)
        add_consumer([0, 1])
        if isinstance(doomed, TaskHandle):
            doomed.cancel()
    for sender, _ in ends:
        sender.close()
    stays = [receiver.clone() for _, receiver in ends]  # so that nothing is dropped when all consumers have gone
    for _, receiver in ends:
        receiver.close()
    troupe.end()
    for receiver in clones:
        receiver.close()
    for receiver in stays:
        got.append(Book(list(receiver.sync)))
        assert not receiver._pipe.queue._getters
        assert not receiver._pipe.queue._putters
        receiver.close()
    every_put = Counter(item for book in put for item in book.items)
    every_got = Counter(item for book in got for item in book.items)
    assert every_got == every_put, f"lost {every_put - every_got}, from nowhere {every_got - every_put}"
    in_order(got)
    return Counter(channels=len(every_put), **{"given up": sum(book.given_up for book in (*put, *got))})


def in_order(books: list[Book]) -> None:
    for book in books:
        latest: dict[int, int] = {}
        for producer, n in book.items:
            assert latest.get(producer, -1) < n, f"item {n} of producer {producer} was overtaken"
            latest[producer] = n


# broadcast


async def publish(sender: BroadcastSender[Item], number: int, count: int, book: Book, rng: random.Random) -> None:
    with sender:
        for n in range(count):
            sender.send((number, n))
            if rng.random() < 0.05:
                await asyncio.sleep(0)


def publish_on_thread(sender: BroadcastSender[Item], number: int, count: int, book: Book, rng: random.Random) -> None:
    with sender:
        for n in range(count):
            sender.send((number, n))


async def follow(receiver: BroadcastReceiver[Item], book: Book, rng: random.Random) -> None:
    with receiver:
        while True:
            try:
                async with asyncio.timeout(tiny(rng)):
                    book.items.append(await receiver.receive())
            except Lagged as lag:
                book.missed += lag.missed
            except TimeoutError:
                book.given_up += 1
                await asyncio.sleep(0)
            except ChannelClosed:
                return


def follow_on_thread(receiver: BroadcastReceiver[Item], book: Book, rng: random.Random) -> None:
    with receiver:
        while True:
            try:
                book.items.append(receiver.sync.receive(tiny(rng)))
            except Lagged as lag:
                book.missed += lag.missed
            except QueueEmpty:
                book.given_up += 1
            except ChannelClosed:
                return


def race_broadcast(runtime: Runtime, rng: random.Random, count: int) -> Counter[str]:
    """Each receiver gets or misses each value; those who share one get them together."""
    sender, receiver = broadcast[Item](rng.choice((1, 4, 64, 100_000)))
    troupe = Troupe(runtime, rng)
    shared: list[list[Book]] = []
    for _ in range(rng.randrange(1, 5)):
        end = receiver.clone()
        books = [Book() for _ in range(rng.choice((1, 1, 2)))]
        shared.append(books)
        actors = (follow, follow_on_thread) if len(books) == 1 else (share, share_on_thread)
        for book in books:
            troupe.add(*actors, end, book)
    receiver.close()
    publishers = rng.randrange(1, 5)
    for number in range(publishers):
        troupe.add(publish, publish_on_thread, sender.clone(), number, count, Book())
    sender.close()
    troupe.end()
    for books in shared:
        items = Counter(item for book in books for item in book.items)
        assert not items or max(items.values()) == 1
        assert len(items) + sum(book.missed for book in books) == publishers * count
        in_order(books)
    return Counter(broadcast=publishers * count, missed=sum(book.missed for books in shared for book in books))


async def share(receiver: BroadcastReceiver[Item], book: Book, rng: random.Random) -> None:
    """Follow, but leave the closing to the last reference: others use the same end."""
    while True:
        try:
            book.items.append(await receiver.receive())
        except Lagged as lag:
            book.missed += lag.missed
        except ChannelClosed:
            return


def share_on_thread(receiver: BroadcastReceiver[Item], book: Book, rng: random.Random) -> None:
    while True:
        try:
            book.items.append(receiver.sync.receive())
        except Lagged as lag:
            book.missed += lag.missed
        except ChannelClosed:
            return


# watch and oneshot


async def set_values(sender: WatchSender[Item], number: int, count: int, rng: random.Random) -> None:
    with sender:
        for n in range(count):
            sender.send((number, n))
            if rng.random() < 0.05:
                await asyncio.sleep(0)


def set_values_on_thread(sender: WatchSender[Item], number: int, count: int, rng: random.Random) -> None:
    with sender:
        for n in range(count):
            sender.send((number, n))


async def see(receiver: WatchReceiver[Item], book: Book, rng: random.Random) -> None:
    with receiver:
        while True:
            try:
                async with asyncio.timeout(tiny(rng)):
                    book.items.append(await receiver.changed())
            except TimeoutError:
                book.given_up += 1
                await asyncio.sleep(0)
            except ChannelClosed:
                return


def see_on_thread(receiver: WatchReceiver[Item], book: Book, rng: random.Random) -> None:
    with receiver:
        while True:
            try:
                book.items.append(receiver.sync.changed(tiny(rng)))
            except TimeoutError:
                book.given_up += 1
            except ChannelClosed:
                return


def race_watch(runtime: Runtime, rng: random.Random, count: int) -> Counter[str]:
    """All see values in order, and the last one."""
    sender, receiver = watch((-1, -1))
    troupe = Troupe(runtime, rng)
    books = [Book() for _ in range(rng.randrange(1, 5))]
    for book in books:
        troupe.add(see, see_on_thread, receiver.clone(), book)
    for number in range(rng.randrange(1, 4)):
        troupe.add(set_values, set_values_on_thread, sender.clone(), number, count)
    sender.close()
    receiver.close()
    troupe.end()
    assert all(book.items[-1] == receiver.value for book in books)
    in_order(books)
    return Counter(watch=sum(len(book.items) for book in books))


def race_oneshots(runtime: Runtime, rng: random.Random, count: int) -> Counter[str]:
    """Each answer is received, or its sender hears that nobody waits, or it was dropped with the receiver."""
    questions: Queue[Any] = Queue(rng.choice((0, 1)))
    answered: list[int] = []
    told: list[int] = []

    async def ask(start: int, rng: random.Random) -> None:
        for n in range(start, start + count):
            sender, receiver = oneshot[int]()
            await questions.put((n, sender))
            del sender
            with receiver:
                try:
                    async with asyncio.timeout(tiny(rng)):
                        answered.append(await receiver)
                except TimeoutError:
                    pass

    def answer(rng: random.Random) -> None:
        for n, sender in questions.sync:
            try:
                sender.send(n)
            except ChannelClosed:
                told.append(n)

    asking = [runtime.spawn(ask, start, random.Random(rng.random())) for start in (0, count, 2 * count)]
    answering = [TestThread(answer, random.Random(rng.random()), timeout=PATIENCE) for _ in range(2)]
    for one in asking:
        one.result(PATIENCE)
    questions.shutdown()
    for thread in answering:
        thread.result()
    both = Counter(answered) + Counter(told)
    assert not both or max(both.values()) == 1
    return Counter(answered=len(answered), told=len(told))


RACES = (race_channels, race_broadcast, race_watch, race_oneshots)


def run(rng: random.Random, seconds: float, count: int) -> Counter[str]:
    """Races for ``seconds``."""
    outcomes: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    with Runtime(loops=LOOPS) as runtime:
        for race in RACES:  # each at least once
            outcomes += race(runtime, rng, count)
        while time.monotonic() < deadline:
            outcomes += rng.choice(RACES)(runtime, rng, count)
            outcomes["rounds"] += 1
    print(dict(outcomes))
    return outcomes


@pytest.mark.stress
def test_stress(rng: random.Random, seconds: float) -> None:
    """All kinds of channels, both faces, for as long as one likes."""
    assert run(rng, seconds, 1000)["given up"] > 0


def test_stress_in_small(rng: random.Random) -> None:
    """The same for two seconds."""
    outcomes = run(rng, 2.0, 50)
    assert min(outcomes[kind] for kind in ("channels", "broadcast", "watch", "answered")) > 0
