"""The results of a crawl: an index on each loop while it runs, one SQLite database at its end.

SQLite has one writer at a time. Loops that wrote to it would wait for each other, so each loop collects its rows, and
a batch goes to the database on a helper thread, one batch at a time.
"""

import hashlib
import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

_SCHEMA = """
CREATE TABLE pages (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, title TEXT, words INTEGER, links INTEGER, fingerprint INTEGER
);
CREATE TABLE terms (term TEXT PRIMARY KEY, pages INTEGER, occurrences INTEGER, page_ids BLOB) WITHOUT ROWID;
"""

type PageRow = tuple[int, str, str, int, int, int]
"""id, path, title, words, links, fingerprint."""


class TermIndex:
    """An inverted index: for each term the ids of the pages that have it, and how often it occurs in all of them.

    Thread safety: one thread at a time. Each loop fills its own, and they are merged when the loops are done.
    """

    def __init__(self) -> None:
        self._pages: dict[str, array[int]] = {}
        self._occurrences: dict[str, int] = {}

    def add(self, page: int, terms: dict[str, list[int]]) -> None:
        """Add a page."""
        for term, places in terms.items():
            pages = self._pages.get(term)
            if pages is None:
                self._pages[term] = array("I", (page,))
                self._occurrences[term] = len(places)
            else:
                pages.append(page)
                self._occurrences[term] += len(places)

    def merge(self, other: "TermIndex") -> None:
        """Take over what ``other`` holds, which is of no use afterwards."""
        for term, pages in other._pages.items():
            own = self._pages.setdefault(term, pages)
            if own is not pages:
                own.extend(pages)
            self._occurrences[term] = self._occurrences.get(term, 0) + other._occurrences[term]

    def rows(self) -> Iterable[tuple[str, int, int, bytes]]:
        """Give term, number of pages, occurrences and ids of the pages of each term."""
        for term, pages in self._pages.items():
            yield term, len(pages), self._occurrences[term], pages.tobytes()


class Store:
    """The database of one crawl.

    Thread safety: any thread, one at a time; the crawl sees to that with a ``CapacityLimiter(1)``.
    """

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file, check_same_thread=False)
        # The file is made anew by every crawl: after a crash one would crawl again, so nothing is written twice.
        self._connection.execute("PRAGMA journal_mode=MEMORY")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.executescript(_SCHEMA)

    def add_pages(self, rows: Sequence[PageRow]) -> None:
        """Write a batch of pages."""
        with self._connection:
            self._connection.executemany("INSERT INTO pages VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add_terms(self, index: TermIndex) -> None:
        """Write the whole index."""
        with self._connection:
            self._connection.executemany("INSERT INTO terms VALUES (?, ?, ?, ?)", index.rows())

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def summarise(file: Path) -> tuple[int, int, str]:
    """Read a finished database: its pages, its terms, and a digest of what must not depend on the order of fetching.

    Ids follow the order in which pages were found, which differs between runs; the counts must not.
    """
    connection = sqlite3.connect(file)
    try:
        pages = connection.execute("SELECT path, title, words, links, fingerprint FROM pages ORDER BY path").fetchall()
        terms = connection.execute("SELECT term, pages, occurrences FROM terms ORDER BY term").fetchall()
    finally:
        connection.close()
    return len(pages), len(terms), hashlib.sha256(repr((pages, terms)).encode()).hexdigest()
