"""The experiments' pictures: panels of curves, with the range over the seeds, and of dots."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.experiments.lines import Line, grouped

# Okabe and Ito's colours, which stay apart for colour-blind readers, in the order of use.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DPI = 130
_MOST_TICKS = 6
_MARGIN = 1.3  # times the largest value, on a logarithmic axis
_WIDE, _NARROW, _MANY = 3.7, 2.9, 4  # inches of a panel, with few in a row or with that many


@dataclass(frozen=True)
class Series:
    """A curve with a range.

    Args:
        label: in the legend.
        values: by position on the x axis, one per seed.
    """

    label: str
    values: Mapping[float, Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Args:
        title: above it.
        x: label of the x axis.
        y: label of the y axis.
        series: its curves.
        categories: words for the positions, which are then evenly spaced.
        log: whether the y axis is logarithmic.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    categories: tuple[str, ...] = ()
    log: bool = False


def line_panels(
    lines: Sequence[Line], titles: Mapping[str, str], unit: str = "nats"
) -> list[Panel]:
    """Losses and, below them, accuracies along the lines, one column per setting.

    Args:
        lines: of all settings; curves of one name and treatment are put together.
        titles: of the columns by setting; other settings are left out.
        unit: of the losses.
    """
    by_setting = grouped(lines, lambda line: line.setting)
    columns = [(titles[s], by_setting[s]) for s in titles if s in by_setting]
    losses, accuracies = [], []
    treatments = any(len({line.treatment for line in same}) > 1 for same in by_setting.values())
    for number, (title, same) in enumerate(columns):
        by_name = grouped(same, lambda line: _label(line, treatments))
        first = number == 0
        losses.append(
            Panel(
                title,
                "",
                f"held-out loss ({unit})" if first else "",
                tuple(Series(name, _by_position(rows, False)) for name, rows in by_name.items()),
            )
        )
        accuracies.append(
            Panel(
                "",
                "t, from A to B",
                "held-out accuracy" if first else "",
                tuple(Series(name, _by_position(rows, True)) for name, rows in by_name.items()),
            )
        )
    return [*losses, *accuracies]


def draw(panels: Sequence[Panel], columns: int, title: str) -> bytes:
    """Draw panels in rows, with one legend below, and return the picture as PNG.

    Uses matplotlib's object interface only: pyplot's global state and backend stay untouched.

    Args:
        panels: row by row.
        columns: panels in a row.
        title: of the picture.
    """
    rows = math.ceil(len(panels) / columns)
    labels = list(dict.fromkeys(s.label for panel in panels for s in panel.series))
    figure = Figure(
        figsize=(max(6.5, (_WIDE if columns < _MANY else _NARROW) * columns), 3.2 * rows + 1.0),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(),
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    for number, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(rows, columns, number + 1), panel, labels)
    if len(labels) > 1:
        handles = [
            Line2D([], [], color=_colour(k), marker=_marker(k), label=label)
            for k, label in enumerate(labels)
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=_legend_columns(labels, figure.get_figwidth()),
            frameon=False,
            fontsize=10,
        )
    return _png(figure)


@dataclass(frozen=True)
class Dots:
    """A panel with a row per name and one dot per value.

    Args:
        title: above it.
        x: label of the x axis.
        values: above 0, by name of the row, then by label in the legend.
    """

    title: str
    x: str
    values: Mapping[str, Mapping[str, Sequence[float]]]


def draw_dots(panels: Sequence[Dots], columns: int, title: str) -> bytes:
    """Draw panels of dots, the mean of each row as a bar; return the picture as PNG.

    Args:
        panels: row by row, with the same names.
        columns: panels in a row.
        title: of the picture.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.values))
    labels = list(
        dict.fromkeys(label for p in panels for found in p.values.values() for label in found)
    )
    rows = math.ceil(len(panels) / columns)
    height = 0.3 * len(names) + 1.1
    figure = Figure(
        figsize=(4.2 * columns + 1.6, height * rows + 0.9),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(),
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_dots(axes, panel, names, labels)
        if number % columns:
            axes.set_yticklabels([])
    handles = [
        Line2D([], [], color=_colour(k), marker=_marker(k), linestyle="", label=label)
        for k, label in enumerate(labels)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=_legend_columns(labels, figure.get_figwidth()),
        frameon=False,
        fontsize=10,
    )
    return _png(figure)


def _draw_dots(axes: Axes, panel: Dots, names: Sequence[str], labels: Sequence[str]) -> None:
    for row, name in enumerate(names):
        for number, label in enumerate(labels):
            values = panel.values.get(name, {}).get(label, ())
            if not values:
                continue
            y = row + 0.22 * (number - (len(labels) - 1) / 2)
            style = {"color": _colour(number), "linestyle": ""}
            axes.plot(values, [y] * len(values), marker=_marker(number), markersize=4, **style)
            axes.plot([mean(values)], [y], marker="|", markersize=11, markeredgewidth=2, **style)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    every = [value for found in panel.values.values() for v in found.values() for value in v]
    if every:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(every) / _MARGIN, max(every) * _MARGIN)
    axes.set_xlabel(panel.x, fontsize=9)
    axes.set_title(panel.title, fontsize=11)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_panel(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    for series in panel.series:
        number = labels.index(series.label)
        found = sorted((position, values) for position, values in series.values.items() if values)
        x = [position for position, _ in found]
        low, high = ([edge(values) for _, values in found] for edge in (min, max))
        axes.fill_between(x, low, high, color=_colour(number), alpha=0.18, linewidth=0)
        axes.plot(
            x,
            [mean(values) for _, values in found],
            color=_colour(number),
            marker=_marker(number),
            markersize=4,
            linewidth=1.8,
        )
    if panel.log:
        axes.set_yscale("log")
    if panel.categories:
        axes.set_xticks(range(len(panel.categories)), panel.categories)
    elif panel.series and len(panel.series[0].values) <= _MOST_TICKS:
        axes.set_xticks(sorted(panel.series[0].values))
    axes.set_xlabel(panel.x, fontsize=10)
    axes.set_ylabel(panel.y, fontsize=10)
    axes.set_title(panel.title, fontsize=11)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_columns(labels: Sequence[str], inches: float) -> int:
    """As many as fit, by the longest label."""
    widest = 0.6 + 0.08 * max(len(label) for label in labels)
    return max(1, min(len(labels), int(inches / widest)))


def _label(line: Line, treatments: bool) -> str:
    return f"{line.name}, {line.treatment}" if treatments else line.name


def _by_position(lines: Sequence[Line], accuracies: bool) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for line in lines:
        values = (line.curve.accuracies or ()) if accuracies else line.curve.losses
        for t, value in zip(line.curve.positions, values, strict=True):
            found.setdefault(t, []).append(value)
    return found


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
