"""Write panels as one self-contained SVG or HTML file: no script, no font, no style from elsewhere. Drawn by pygal."""

import html
import importlib
import re
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polyloop.cli._errors import CliError, ExitCode
from polyloop.cli.bench._panels import Panel

_WIDTH, _HEIGHT = 640, 400
_MARGIN, _HEAD, _FOOT = 24, 84, 24
_LETTER, _LINE = 7.6, 20  # width and height of text of size 14, in a wide font
_COLORS = ("#9aa5b1", "#2563eb", "#d97706")
_FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
_SVG_NAMESPACE = "http://www.w3.org/2000/svg"  # the standard's name for the format; nothing is loaded from it
_STYLE = (
    f"body {{ margin: 0; padding: 24px; font-family: {_FONT}; color: #1f2933; background: #ffffff; }}\n"
    "h1 { font-size: 22px; margin: 0 0 4px; } p { margin: 0 0 20px; color: #52606d; }\n"
    "main { display: flex; flex-wrap: wrap; gap: 24px; }\n"
    "figure { margin: 0; border: 1px solid #e4e7eb; border-radius: 8px; }\n"
    f"figure svg {{ display: block; width: {_WIDTH}px; max-width: 100%; height: auto; }}\n"
)


def write_chart(file: Path, title: str, subtitle: str, panels: Sequence[Panel]) -> None:
    """Write ``panels`` to ``file``: an SVG file if that is its suffix, else an HTML page. Folders on the way are made.

    Raises:
        CliError: the file cannot be written.
    """
    drawings = [_draw(panel) for panel in panels]
    page = (_as_svg if file.suffix == ".svg" else _as_html)(title, subtitle, drawings)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise CliError(f"cannot write the chart: {exc}", hint="choose another --chart", code=ExitCode.FAILURE) from exc


def _draw(panel: Panel) -> str:
    """Return the panel as an ``<svg>`` element."""
    pygal: Any = importlib.import_module("pygal")  # has no type information
    chart = (pygal.Line if panel.kind == "line" else pygal.Bar)(_config(pygal, panel))
    # A line needs an empty place at both ends, or its first and last labels are cut off.
    edge: list[None] = [None] if panel.kind == "line" else []
    chart.x_labels = ["" for _ in edge] + list(panel.labels) + ["" for _ in edge]
    for series in panel.series:
        # The ideal is a guide: dashed, and without figures, which would stand over those of a measurement close to it.
        guide = {"stroke_style": {"dasharray": "8, 6"}, "formatter": _nothing} if series.name == "ideal" else {}
        chart.add(series.name, [*edge, *series.values, *edge], **guide)
    return _strip(chart.render(is_unicode=True, disable_xml_declaration=True))


def _config(pygal: Any, panel: Panel) -> Any:
    one = len(panel.series) == 1
    config = pygal.Config()
    config.js = []  # pygal's tooltips are a script on its own host
    config.style = pygal.style.Style(
        background="transparent", plot_background="transparent", foreground="#52606d", foreground_strong="#1f2933",
        foreground_subtle="#9aa5b1", colors=_COLORS[1:] if one else _COLORS, opacity="1", opacity_hover="1",
        stroke_width="3" if panel.kind == "line" else "1",
        font_family=_FONT, title_font_family=_FONT, title_font_size=15, label_font_size=13, major_label_font_size=13,
        value_font_size=13, legend_font_size=13, value_colors=("#1f2933",) * 3, guide_stroke_color="#e4e7eb",
        major_guide_stroke_color="#cbd2d9", guide_stroke_dasharray="0", major_guide_stroke_dasharray="0",
    )  # fmt: skip
    config.width, config.height, config.margin = _WIDTH, _HEIGHT, 16
    config.title, config.x_title, config.y_title = panel.title, panel.x_title, panel.y_title or None
    config.show_legend, config.legend_at_bottom = not one, True
    config.legend_at_bottom_columns = max(2, len(panel.series))  # in one line: there is no room for two
    config.print_values, config.include_x_axis, config.range = True, True, _range(panel)
    config.print_values_position, config.truncate_label = "top", -1
    config.dots_size, config.min_scale, config.max_scale, config.rounded_bars = 5, 4, 6, 2
    config.formatter = partial(_beside_point, decimals=panel.decimals)
    config.value_formatter = _along_axis
    return config


def _nothing(_value: float | None) -> str:
    return ""


def _beside_point(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"


def _along_axis(value: float) -> str:
    return f"{value:,.6g}"


def _range(panel: Panel) -> tuple[float, float]:
    """From nothing to a little above the largest value, so that bars are comparable and labels have room."""
    return 0.0, 1.12 * max(value for series in panel.series for value in series.values)


def _strip(svg: str) -> str:
    """Drop comments, the empty script and names of formats that a drawing inside a page does not need."""
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<script\b.*?(</script>|/>)", "", svg, flags=re.DOTALL)
    return re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", svg)


def _as_html(title: str, subtitle: str, drawings: Sequence[str]) -> str:
    figures = "\n".join(f"<figure>{drawing}</figure>" for drawing in drawings)
    head = f'<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>\n{_STYLE}</style>'
    body = f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(subtitle)}</p>\n<main>\n{figures}\n</main>"
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _as_svg(title: str, subtitle: str, drawings: Sequence[str]) -> str:
    columns = min(2, len(drawings))
    rows = -(-len(drawings) // columns)
    width = columns * (_WIDTH + _MARGIN) + _MARGIN
    lines = textwrap.wrap(subtitle, int((width - 2 * _MARGIN) / _LETTER))
    head = _HEAD + _LINE * (len(lines) - 1)
    height = head + rows * (_HEIGHT + _MARGIN) + _FOOT - _MARGIN
    placed = "\n".join(_place(drawing, head, *divmod(number, columns)) for number, drawing in enumerate(drawings))
    below = "\n".join(
        f'<text x="{_MARGIN}" y="{66 + _LINE * number}" font-size="14" fill="#52606d">{html.escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return (
        f'<svg xmlns="{_SVG_NAMESPACE}" {size} font-family="{_FONT}">\n'
        f'<title>{html.escape(title)}</title>\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f'<text x="{_MARGIN}" y="40" font-size="22" font-weight="bold" fill="#1f2933">{html.escape(title)}</text>\n'
        f"{below}\n{placed}\n</svg>\n"
    )


def _place(drawing: str, head: int, row: int, column: int) -> str:
    x, y = _MARGIN + column * (_WIDTH + _MARGIN), head + row * (_HEIGHT + _MARGIN)
    return drawing.replace("<svg", f'<svg x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}"', 1)
