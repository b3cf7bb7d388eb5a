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
CREATE TABLE terms (term TEXT PRIMARY KEY, pages INTEGER, occurrences INTEGER, postings BLOB) WITHOUT ROWID;
"""

type PageRow = tuple[int, str, str, int, int, int]
"""id, path, title, words, links, fingerprint."""


class TermIndex:
    """An inverted index: for each term the pages that have it, as pairs of page id and number of occurrences.

    Thread safety: one thread at a time. Each loop fills its own, and they are merged when the loops are done.
    """

    def __init__(self) -> None:
        self._postings: dict[str, array[int]] = {}

    def add(self, page: int, terms: dict[str, list[int]]) -> None:
        """Add a page."""
        for term, places in terms.items():
            postings = self._postings.get(term)
            if postings is None:
                postings = self._postings[term] = array("I")
            postings.append(page)
            postings.append(len(places))

    def merge(self, other: "TermIndex") -> None:
        """Take over the postings of ``other``, which is of no use afterwards."""
        for term, postings in other._postings.items():
            own = self._postings.get(term)
            if own is None:
                self._postings[term] = postings
            else:
                own.extend(postings)

    def rows(self) -> Iterable[tuple[str, int, int, bytes]]:
        """Give term, pages, occurrences and postings of each term."""
        for term, postings in self._postings.items():
            yield term, len(postings) // 2, sum(postings[1::2]), postings.tobytes()


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

    Ids, and so postings, follow the order in which pages were found, which differs between runs; the counts must not.
    """
    connection = sqlite3.connect(file)
    try:
        pages = connection.execute("SELECT path, title, words, links, fingerprint FROM pages ORDER BY path").fetchall()
        terms = connection.execute("SELECT term, pages, occurrences FROM terms ORDER BY term").fetchall()
    finally:
        connection.close()
    return len(pages), len(terms), hashlib.sha256(repr((pages, terms)).encode()).hexdigest()
