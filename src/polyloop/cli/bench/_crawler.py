"""The crawler that ``bench crawl`` times: an ordinary polyloop program.

Every page is a task of one group, placed by the runtime. What a page needs is on a *shelf*, one for each loop: the
HTTP session (which belongs to its loop), a bound on the pages at work, the rows and the index. The loops share three
things: the group, the set of pages seen (one short lock per page) and the database (one batch at a time, on a helper
thread).
"""

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import aiohttp

import polyloop
from polyloop.cli.bench._crawl_store import PageRow, Store, TermIndex
from polyloop.cli.bench._page_text import PageText, read_page

_AT_WORK = 8  # pages per loop; enough to hide the network, few enough to keep memory flat
_BATCH = 64
_TIMEOUT = aiohttp.ClientTimeout(total=60)


async def crawl(site: str, start: str, database: Path) -> None:
    """Fetch all pages that can be reached from ``start``, and write them and an index of their words into ``database``.

    Args:
        site: Address without a path.
        start: Path of the first page.
        database: A file that does not exist yet.
    Raises:
        ExceptionGroup: pages could not be fetched or stored.
    """
    store = Store(database)
    try:
        await Crawler(site, store).run(start)
    finally:
        await polyloop.to_thread(store.close)


class Shelf:
    """What belongs to one loop. Only that loop touches it, until the crawl is over."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.places = asyncio.Semaphore(_AT_WORK)
        self.rows: list[PageRow] = []
        self.index = TermIndex()


class Frontier:
    """The pages that were seen so far, shared by all loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}  # path to id; guarded by _lock

    def claim(self, paths: Iterable[str]) -> list[tuple[int, str]]:
        """Return id and path of those that nobody claimed before; they are the caller's to fetch."""
        with self._lock:
            return [claimed for path in paths if (claimed := self._claim_locked(path)) is not None]

    def _claim_locked(self, path: str) -> tuple[int, str] | None:
        if path in self._seen:
            return None
        number = self._seen[path] = len(self._seen)
        return number, path


class Crawler:
    """One crawl."""

    def __init__(self, site: str, store: Store) -> None:
        self._site = site
        self._store = store
        self._one_writer = polyloop.CapacityLimiter(1)
        self._frontier = Frontier()
        self._shelves: dict[asyncio.AbstractEventLoop, Shelf] = {}  # filled before the first page, then only read

    async def run(self, start: str) -> None:
        """Crawl until no page is left, then write what the shelves hold."""
        workers = polyloop.current_runtime().workers
        async with polyloop.TaskGroup() as group:
            for worker in workers:
                group.create_task(self._open_shelf(), on=worker)
        try:
            async with polyloop.TaskGroup() as group:
                self._visit_soon(group, [start])
        finally:
            async with polyloop.TaskGroup() as group:
                for worker in workers:
                    group.create_task(self._close_session(), on=worker)
        await polyloop.to_thread(self._finish)

    async def _open_shelf(self) -> None:
        session = aiohttp.ClientSession(raise_for_status=True, timeout=_TIMEOUT)
        self._shelves[asyncio.get_running_loop()] = Shelf(session)

    async def _close_session(self) -> None:
        await self._shelves[asyncio.get_running_loop()].session.close()

    def _visit_soon(self, group: polyloop.TaskGroup, paths: Iterable[str]) -> None:
        for number, path in self._frontier.claim(paths):
            group.create_task(self._visit(group, number, path))

    async def _visit(self, group: polyloop.TaskGroup, number: int, path: str) -> None:
        shelf = self._shelves[asyncio.get_running_loop()]
        async with shelf.places:
            async with shelf.session.get(self._site + path) as response:
                page = read_page(await response.read())
            self._visit_soon(group, page.links)
            self._shelve(shelf, number, path, page)
            if len(shelf.rows) >= _BATCH:
                rows, shelf.rows = shelf.rows, []
                await polyloop.to_thread(self._store.add_pages, rows, limiter=self._one_writer)

    def _shelve(self, shelf: Shelf, number: int, path: str, page: PageText) -> None:
        shelf.rows.append((number, path, page.title, page.words, len(page.links), page.fingerprint))
        shelf.index.add(number, page.terms)

    def _finish(self) -> None:
        """Write what is left. No loop touches the shelves any more."""
        first, *others = self._shelves.values()
        for shelf in others:
            first.rows += shelf.rows
            first.index.merge(shelf.index)
        self._store.add_pages(first.rows)
        self._store.add_terms(first.index)
