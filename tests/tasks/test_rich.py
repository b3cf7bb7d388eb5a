"""``RichProgress``: what it shows, and what it says when rich is missing."""

import asyncio
import io
import sys
from collections.abc import Iterator

import pytest

import polyloop
from polyloop.tasks import Progress, RichProgress

rich_console = pytest.importorskip("rich.console")


@pytest.fixture
def screen() -> Iterator[io.StringIO]:
    with io.StringIO() as stream:
        yield stream


def console(stream: io.StringIO) -> "rich_console.Console":  # type: ignore[name-defined]
    return rich_console.Console(file=stream, force_terminal=True, width=100, color_system=None)


def test_it_shows_the_label_the_count_and_the_failures(screen: io.StringIO) -> None:
    """While a map runs, and when it has ended."""

    def work(item: int) -> int:
        if item == 3:
            raise ValueError(item)
        return item

    async def main() -> None:
        with RichProgress("some work", console=console(screen)) as bar:
            async for _ in polyloop.map(work, range(10), progress=bar, return_exceptions=True):
                pass

    asyncio.run(main())
    shown = screen.getvalue()
    assert "some work" in shown
    assert "10/10, 1 failed" in shown


def test_it_shows_a_count_while_there_is_no_total(screen: io.StringIO) -> None:
    """An endless source has none."""
    with RichProgress("endless", console=console(screen)) as bar:
        bar(Progress(5, 0, None))
    assert "endless" in screen.getvalue()
    assert " 5 " in screen.getvalue()


def test_it_belongs_into_its_block(screen: io.StringIO) -> None:
    """Else nothing would ever be drawn."""
    bar = RichProgress("unused", console=console(screen))
    with pytest.raises(RuntimeError, match="inside of its block"):
        bar(Progress(1, 0, 2))


def test_where_there_is_no_terminal_it_shows_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, and nothing else."""
    with RichProgress("quiet") as bar:
        for done in range(3):
            bar(Progress(done, 0, 2))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("quiet") == 1


def test_without_rich_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that has it."""
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ModuleNotFoundError, match=r"polyloop\[cli\]"):
        RichProgress("nothing")


def test_rich_is_not_imported_by_polyloop() -> None:
    """Only by a bar."""
    import subprocess

    code = "import polyloop, polyloop.tasks, sys; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
