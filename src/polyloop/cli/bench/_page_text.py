"""What the crawl does with a page: parse it, find its links, break its text into terms. CPU work that allocates.

Written so that threads do not meet: all that the inner loops touch is made by the call itself. On 3.13t an object
that several threads use in a tight loop (a compiled pattern, a class attribute, a string constant that is no
identifier) makes them slower than one thread, as they pass its reference count back and forth. One-letter strings,
small integers and functions are free of that.
"""

import zlib
from dataclasses import dataclass
from html.parser import HTMLParser

_SHINGLE = 3


@dataclass(frozen=True, slots=True)
class PageText:
    """A parsed page."""

    title: str
    links: tuple[str, ...]
    """The ``href`` of each link, in order."""
    words: int
    terms: dict[str, list[int]]
    """Positions of each term."""
    fingerprint: int
    """Of the sequence of words; near-duplicates mostly have the same (the least hash of all groups of three words)."""


def read_page(body: bytes) -> PageText:
    """Parse an HTML page in UTF-8."""
    parser = _PageParser()
    parser.feed(body.decode())
    parser.close()
    words = split_words(" ".join(parser.text))
    return PageText(parser.title, tuple(parser.links), len(words), positions(words), fingerprint(words))


def split_words(text: str) -> list[str]:
    """Break text into lower-case words without punctuation at their ends."""
    marks = "".join((".", ",", ";", ":", "!", "?"))  # joined here, so that the string is this thread's own
    stripped = [word.strip(marks) for word in text.casefold().split()]
    return [word for word in stripped if word]


def positions(words: list[str]) -> dict[str, list[int]]:
    """Return the places at which each word stands."""
    found: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places = found.get(word)
        if places is None:
            found[word] = [place]
        else:
            places.append(place)
    return found


def fingerprint(words: list[str]) -> int:
    """Return the least hash of the groups of three neighbouring words; 0 where there are fewer words."""
    hashes = [zlib.crc32(" ".join(words[at : at + _SHINGLE]).encode()) for at in range(len(words) - _SHINGLE + 1)]
    return min(hashes, default=0)


class _PageParser(HTMLParser):
    """Collects the title, the links and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.links: list[str] = []
        self.text: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links.extend(value for name, value in attrs if name == "href" and value)
        elif tag == "title":
            self._in_title = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        else:
            self.text.append(data)
