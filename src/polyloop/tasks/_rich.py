"""A progress bar in the terminal, drawn by rich."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from polyloop.tasks._progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


class RichProgress:
    """A progress bar for ``progress=`` of ``map``, ``gather`` and ``as_completed``.

    Shown inside of its ``with`` block::

        with polyloop.tasks.RichProgress("checksums") as bar:
            async for digest in polyloop.map(checksum, files, progress=bar):
                ...

    A bar serves one call of them at a time. Where the output is no terminal, it shows its last state only.

    Args:
        label: What is under way; shown before the bar.
        console: Where to draw, a ``rich.console.Console``; standard error by default.
    Raises:
        ModuleNotFoundError: rich is not installed; it comes with ``polyloop[cli]``.
    Thread safety: for the tasks of one loop.

    .. versionadded:: 0.3
    """

    def __init__(self, label: str = "", *, console: "Console | None" = None) -> None:
        rich = _import_rich()
        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.TextColumn("{task.fields[count]}"),
            rich.TimeElapsedColumn(),
        )
        if console is None:
            from rich.console import Console  # noqa: PLC0415 - an extra

            console = Console(stderr=True)
        self._bar = rich.Progress(*columns, console=console)
        self._task = self._bar.add_task(label, total=None, count="0")
        self._shown = False

    def __enter__(self) -> Self:
        self._bar.start()
        self._shown = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown = False
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far it has come; what ``progress=`` calls.

        Raises:
            RuntimeError: outside of the ``with`` block.
        """
        if not self._shown:
            raise RuntimeError("a RichProgress is shown inside of its block: 'with RichProgress(...) as bar'")
        self._bar.update(self._task, completed=progress.done, total=progress.total, count=_count(progress))


def _count(progress: Progress) -> str:
    done = str(progress.done) if progress.total is None else f"{progress.done}/{progress.total}"
    return f"{done}, {progress.failed} failed" if progress.failed else done


def _import_rich() -> Any:
    try:
        import rich.progress  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            "RichProgress needs rich: install polyloop[cli], or give progress= a function of your own", name=exc.name
        ) from exc
    return rich.progress
