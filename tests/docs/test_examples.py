"""The Python examples of the README and of the pages for users run as they stand."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

import polyloop

ROOT = Path(__file__).resolve().parents[2]
#: A block of Python, and the comment above it that says why it cannot run, if it cannot.
_FENCE = re.compile(r"(?:^% not run: (?P<reason>[^\n]+)\n\n?)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[str]:
    """The pages with examples that can run."""
    every = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
    return [page for page in every if any(examples(page))]


def surroundings() -> dict[str, Any]:
    """The names that examples use without defining them."""

    async def fetch(url: str) -> str:
        return f"page {url}"

    def crunch(data: list[int]) -> int:
        return sum(data)

    return {
        "fetch": fetch,
        "crunch": crunch,
        "data": [1, 2, 3],
        "url": "/1",
        "urls": [f"/{n}" for n in range(10)],
        "seen": set(),
        "counts": {"pages": 0},
        "polyloop": polyloop,
    }


def examples(page: str) -> Iterator[CodeType]:
    """The code blocks of a page, with their lines where they stand on it; ``await`` may stand outside of a function."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if match["reason"]:
            continue
        tree = ast.parse("\n" * text.count("\n", 0, match.start("code")) + match["code"], page)
        yield compile(tree, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def run(code: CodeType, names: dict[str, Any]) -> None:
    block: Callable[[], Any] = FunctionType(code, names)
    if code.co_flags & inspect.CO_COROUTINE:
        polyloop.run(block(), loops=2)
    else:
        block()


@pytest.mark.parametrize("page", pages())
def test_examples_of_a_page_run_in_order(page: str) -> None:
    """A later block of a page may use what an earlier one defined."""
    names = surroundings()
    blocks = list(examples(page))
    assert blocks, f"no example found in {page}"
    for code in blocks:
        run(code, names)
