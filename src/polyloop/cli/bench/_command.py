"""The ``bench`` command: arguments in; tables, JSON and a chart out. Measures nothing itself."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from polyloop.cli._environment import describe_cores
from polyloop.cli._errors import EXIT_CODES_HELP, CliError, ExitCode
from polyloop.cli._progress import make_progress
from polyloop.cli.bench._measure import CheckFailedError, Size

if TYPE_CHECKING:
    from polyloop.cli.bench._suite import Outcome

_EXTRA = ("aiohttp", "httpx", "pygal")
_SUFFIXES = (".html", ".svg")
_NAMES = ("cpu", "fetch", "threads", "crawl")
_ALL_CHART = Path("out") / "polyloop-bench.html"
_ROUNDS = 3
_QUICK_SCALE = 0.02
_ALL_SCALES = {"crawl": 0.5}  # so that all end within a minute on two cores


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("which", type=click.Choice((*_NAMES, "all")))
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write JSON; - for standard output.",
)
@click.option(
    "--chart",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a chart: FILE.svg or FILE.html.",
)
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="URL",
    help="Fetch this instead of the embedded site (repeatable; fetch and all).",
)
@click.option(
    "--loops", type=click.IntRange(min=1), metavar="N", help="The most loops or threads.  [default: usable cores]"
)
@click.option(
    "--size",
    type=click.FloatRange(min=0, min_open=True),
    metavar="FACTOR",
    help="Factor on the amount of work.  [default: 1]",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help=f"Repeats of each measurement.  [default: {_ROUNDS}]",
)
@click.option(
    "--quick", is_flag=True, help="A try in a second or two: little work, one round. The figures mean nothing."
)
def bench(
    which: str,
    json_file: str | None,
    chart: Path | None,
    urls: tuple[str, ...],
    loops: int | None,
    size: float | None,
    rounds: int | None,
    quick: bool,
) -> int:
    """Measure on this machine what polyloop promises.

    \b
    cpu      sums of squares on 1 to N threads, through TaskGroup and to_thread
    fetch    a list of URLs one by one, in threads, on one loop, on all loops
    threads  distinct threads used by concurrent calls of a wrapped function
    crawl    a whole site fetched, parsed, indexed and stored, on 1 and on N loops
    all      all of them within a minute, and a chart

    Whatever is compared is measured in turn, within one run; the medians are shown.
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    names = _NAMES if which == "all" else (which,)
    if urls and "fetch" not in names:
        raise CliError(f"--url has no meaning for {which!r}", hint="use it with 'polyloop bench fetch'")
    sizes = _sizes(names, loops, size, rounds, quick=quick)
    chart = _ALL_CHART if chart is None and which == "all" else chart
    _check_beforehand(chart)
    outcome = _measure(names, sizes, urls)
    console = Console(stderr=json_file == "-", highlight=False, soft_wrap=True)
    _show(outcome, console)
    if json_file is not None:
        _write_json(outcome, json_file)
    if chart is not None:
        _write_chart(outcome, chart, which, console)
    return ExitCode.OK


def _sizes(
    names: Sequence[str], loops: int | None, size: float | None, rounds: int | None, *, quick: bool
) -> dict[str, Size]:
    scale = size if size is not None else _QUICK_SCALE if quick else 1.0
    repeats = rounds if rounds is not None else 1 if quick else _ROUNDS
    workers = loops if loops is not None else describe_cores().usable
    factors = _ALL_SCALES if len(names) > 1 else {}
    return {name: Size(scale * factors.get(name, 1.0), repeats, workers) for name in names}


def _check_beforehand(chart: Path | None) -> None:
    """Fail before the work rather than after it."""
    for module in _EXTRA:
        if importlib.util.find_spec(module) is None:
            hint = "install the extra: pip install 'polyloop[bench]'"
            raise CliError(f"bench needs {module!r}, which is not installed", hint=hint, code=ExitCode.FAILURE)
    if chart is not None and chart.suffix not in _SUFFIXES:
        raise CliError(f"--chart {chart}: neither {' nor '.join(_SUFFIXES)}", hint=f"write {chart.stem}.svg")


def _measure(names: Sequence[str], sizes: dict[str, Size], urls: Sequence[str]) -> "Outcome":
    from polyloop.cli.bench import _suite  # noqa: PLC0415 - needs the extra [bench], which run and doctor do not

    with make_progress() as progress:
        task = progress.add_task("starting", total=_suite.total_steps(names, sizes))

        def begin(name: str) -> None:
            progress.update(task, description=name)

        try:
            return _suite.run_suite(names, sizes, urls, begin, lambda: progress.advance(task))
        except CheckFailedError as exc:
            raise CliError(str(exc), hint=exc.hint, code=ExitCode.FAILURE) from exc


def _show(outcome: "Outcome", console: Console) -> None:
    from polyloop.cli.bench._panels import text_of  # noqa: PLC0415 - see _measure

    console.print(_subtitle(outcome))
    for result in outcome.results.values():
        text = text_of(result)
        table = Table(
            title=text.title, caption=text.caption, title_justify="left", caption_justify="left", title_style="bold"
        )
        for number, column in enumerate(text.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in text.rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    for remark in outcome.remarks():
        console.print(f"note: {remark}")


def _subtitle(outcome: "Outcome") -> str:
    interpreter, cores = outcome.interpreter, outcome.cores
    gil = "on" if interpreter.gil_enabled else "off"
    python = f"{interpreter.implementation} {interpreter.version} ({interpreter.build} build, GIL {gil})"
    return f"{python}, {cores.usable} usable core{'s' * (cores.usable != 1)}"


def _write_json(outcome: "Outcome", file: str) -> None:
    text = json.dumps(outcome.as_json(), indent=2)
    if file == "-":
        click.echo(text)
        return
    try:
        Path(file).write_text(text + "\n", encoding="utf-8")
    except OSError as exc:
        raise CliError(f"cannot write the JSON: {exc}", hint="choose another --json", code=ExitCode.FAILURE) from exc


def _write_chart(outcome: "Outcome", file: Path, which: str, console: Console) -> None:
    from polyloop.cli.bench._chart import write_chart  # noqa: PLC0415 - see _measure
    from polyloop.cli.bench._panels import panel_of  # noqa: PLC0415

    subtitle = ". ".join((_subtitle(outcome), *(remark[:1].upper() + remark[1:] for remark in outcome.remarks())))
    write_chart(file, f"polyloop bench {which}", subtitle, [panel_of(result) for result in outcome.results.values()])
    console.print(f"chart: {file.resolve()}")
