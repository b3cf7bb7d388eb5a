"""The ``doctor`` command: arguments in, report out. The looking and judging is in ``_report``."""

import json
from collections.abc import Iterable

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyloop.cli._errors import EXIT_CODES_HELP, ExitCode
from polyloop.cli._progress import make_progress
from polyloop.cli.doctor._report import Report, examine, modules_to_import

_PROBE_STEPS = 7


@click.command(epilog=EXIT_CODES_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Test what importing MODULE does to the GIL (repeatable).",
)
@click.option("--probe/--no-probe", default=True, help="Measure two threads against one.  [default: probe]")
def doctor(as_json: bool, modules: tuple[str, ...], probe: bool) -> int:
    """Tell whether this interpreter can run Python code in parallel.

    Reports the build, the GIL now and how it was set, the cores and limits, the loop libraries and their known
    faults, which installed modules switch the GIL back on (each imported in a process of its own), and how two
    threads run beside one. Without --import the well-known modules that are installed are tried. Exits with 0 if it
    can, with 3 if it cannot.
    """
    total = len(modules_to_import(modules)) + (_PROBE_STEPS if probe else 0)
    with make_progress() as progress:
        task = progress.add_task("examining", total=total)
        report = examine(modules, probe=probe, step=lambda: progress.advance(task))
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _show(report, Console(soft_wrap=True, highlight=False))
    return ExitCode.OK if report.verdict.parallel else ExitCode.NOT_PARALLEL


def _show(report: Report, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    for label, text in _rows(report):
        table.add_row(label, escape(text))
    console.print(table)
    for label, style, lines in (
        ("warning", "yellow", report.verdict.warnings),
        ("note", "dim", report.notes),
        ("reason", "red", report.verdict.reasons),
    ):
        for line in lines:
            console.print(f"[{style}]{label}:[/] {escape(line)}")
    style = "bold green" if report.verdict.parallel else "bold red"
    console.print(f"[{style}]verdict:[/] {escape(report.verdict.summary)}")


def _rows(report: Report) -> Iterable[tuple[str, str]]:
    interpreter, cores = report.interpreter, report.cores
    yield "interpreter", f"{interpreter.implementation} {interpreter.version}, {interpreter.build} build"
    setting = f", set by {interpreter.gil_setting}" if interpreter.gil_setting else ""
    yield "GIL now", f"{'on' if interpreter.gil_enabled else 'off'}{setting}"
    limit = "none" if cores.cgroup_limit is None else f"{cores.cgroup_limit:g} cores"
    affinity = "unknown" if cores.affinity is None else cores.affinity
    yield "cores", f"{cores.usable} usable ({cores.logical} in the machine, affinity {affinity}, cgroup limit {limit})"
    for library in report.loops:
        state = "not installed" if library.version is None else library.fault or f"{library.version}, no known fault"
        yield library.name, state
    yield "imports", _imports_line(report)
    if report.scaling is not None:
        scaling = report.scaling
        yield (
            "two threads",
            f"{scaling.threads:.2f}x of one (two processes: {scaling.processes:.2f}x; medians of {scaling.rounds})",
        )


def _imports_line(report: Report) -> str:
    if not report.imports:
        return "none tried"
    groups: dict[str, list[str]] = {}
    for found in report.imports:
        groups.setdefault(found.outcome, []).append(found.module)
    return "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in groups.items())
