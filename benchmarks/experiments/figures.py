"""The experiments' pictures: panels of curves, with the range over the seeds, and of dots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.experiments.lines import Line, grouped, meaning_of
from fxrebasin.colours import DASHES, MARKERS, Meaning, colour_of
from fxrebasin.picturing import rendered

_DPI = 130
_MOST_TICKS = 6
_MARGIN = 1.3  # times the largest value, on a logarithmic axis
_WIDE, _NARROW, _MANY = 3.7, 2.9, 4  # inches of a panel, with few in a row or with that many
_MOST_DECADES = 2  # with ticks at 1, 2 and 5
_APART = 0.075  # of a row, between the dots of one label and the next


@dataclass(frozen=True)
class _Look:
    """How what has one label is drawn; the first of a meaning is emphasised."""

    colour: str
    dashes: str = "-"
    marker: str = "o"
    first: bool = True

    @property
    def inside(self) -> str:
        return self.colour if self.first else "white"


def _looks(labels: Iterable[tuple[str, Meaning | None]]) -> dict[str, _Look]:
    """A look for every label: the colour of its meaning, dashes and markers where it has others."""
    found: dict[str, _Look] = {}
    met: dict[Meaning | None, int] = {}
    for label, meaning in labels:
        if label in found:
            continue
        rank = met[meaning] = met.get(meaning, -1) + 1
        colour, dashes = (meaning.value, DASHES[rank % len(DASHES)]) if meaning else colour_of(rank)
        marker = MARKERS[(len(found) if meaning is None else rank) % len(MARKERS)]
        found[label] = _Look(colour, dashes, marker, meaning is None or not rank)
    return found


@dataclass(frozen=True)
class Series:
    """A curve with a range.

    Args:
        label: in the legend.
        values: by position on the x axis, one per seed.
        meaning: decides the colour; any that is free where there is none.
    """

    label: str
    values: Mapping[float, Sequence[float]]
    meaning: Meaning | None = None


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
        by_name = grouped(same, lambda line: (_label(line, treatments), meaning_of(line)))
        first = number == 0
        losses.append(
            Panel(
                title,
                "",
                f"held-out loss ({unit})" if first else "",
                tuple(
                    Series(label, _by_position(rows, False), meaning)
                    for (label, meaning), rows in by_name.items()
                ),
            )
        )
        accuracies.append(
            Panel(
                "",
                "t, from A to B",
                "held-out accuracy" if first else "",
                tuple(
                    Series(label, _by_position(rows, True), meaning)
                    for (label, meaning), rows in by_name.items()
                ),
            )
        )
    return [*losses, *accuracies]


def draw(panels: Sequence[Panel], columns: int, title: str, kind: str = "png") -> bytes:
    """Draw panels in rows, with one legend below, and return the picture as a file.

    Uses matplotlib's object interface only: pyplot's global state and backend stay untouched.

    Args:
        panels: row by row.
        columns: panels in a row.
        title: of the picture.
        kind: "png", "svg" or "pdf".
    """
    rows = math.ceil(len(panels) / columns)
    looks = _looks((s.label, s.meaning) for panel in panels for s in panel.series)
    figure = Figure(
        figsize=(max(6.5, (_WIDE if columns < _MANY else _NARROW) * columns), 3.2 * rows + 1.0),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(),
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    for number, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(rows, columns, number + 1), panel, looks)
    if len(looks) > 1:
        _legend(figure, looks)
    return rendered(figure, kind)


@dataclass(frozen=True)
class Dots:
    """A panel with a row per name, and in it a dot for the mean of each label and a line for all.

    Args:
        title: above it.
        x: label of the x axis.
        values: above 0, by name of the row, then by label in the legend.
        meanings: of all labels, in their order; they decide the colours.
    """

    title: str
    x: str
    values: Mapping[str, Mapping[str, Sequence[float]]]
    meanings: Mapping[str, Meaning | None] = field(default_factory=dict)


def draw_dots(panels: Sequence[Dots], columns: int, title: str, kind: str = "png") -> bytes:
    """Draw panels of dots, and return the picture as a file.

    Args:
        panels: row by row; names of rows are written once where all panels have the same.
        columns: panels in a row.
        title: of the picture.
        kind: "png", "svg" or "pdf".
    """
    looks = _looks(
        (label, panel.meanings.get(label))
        for panel in panels
        for label in (panel.meanings or {k: None for v in panel.values.values() for k in v})
    )
    rows = math.ceil(len(panels) / columns)
    heights = [
        max(len(panel.values) for panel in panels[k * columns : (k + 1) * columns])
        for k in range(rows)
    ]
    step = 0.27 if len(looks) < _MOST_TICKS else 0.36
    shared = all(list(panel.values) == list(panels[0].values) for panel in panels)
    width = 2.3 * columns + 2.2 * (1 if shared else columns)
    figure = Figure(
        figsize=(width, sum(step * height + 1.0 for height in heights) + 1.3),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(),
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        _draw_dots(axes, panel, looks)
        if number % columns and shared:
            axes.set_yticklabels([])
    _legend(figure, looks, lines=False)
    return rendered(figure, kind)


def _draw_dots(axes: Axes, panel: Dots, looks: Mapping[str, _Look]) -> None:
    for row, by_label in enumerate(panel.values.values()):
        for number, (label, look) in enumerate(looks.items()):
            values = by_label.get(label, ())
            if not values:
                continue
            y = row + (_APART * (number - (len(looks) - 1) / 2) if len(by_label) > 1 else 0)
            ends = [min(values), max(values)]
            axes.plot(ends, [y, y], color=look.colour, linewidth=0.9, alpha=0.6)
            axes.plot(
                [mean(values)],
                [y],
                color=look.colour,
                marker=look.marker,
                markerfacecolor=look.inside,
                markersize=6.5 if look.first else 4.5,
                linestyle="",
            )
    axes.set_yticks(range(len(panel.values)), list(panel.values), fontsize=9)
    axes.set_ylim(len(panel.values) - 0.5, -0.5)
    every = [value for found in panel.values.values() for v in found.values() for value in v]
    if every:
        axes.set_xscale("log")
        decades = math.log10(max(every) / min(every))
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1,) if decades > _MOST_DECADES else (1, 2, 5))
        )
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(every) / _MARGIN, max(every) * _MARGIN)
    axes.tick_params(axis="x", labelsize=9)
    axes.set_xlabel(panel.x, fontsize=9)
    axes.set_title(panel.title, fontsize=11)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True)
class Drawing:
    """All that a picture shows, so that it can be drawn again without the run that found it.

    Args:
        panels: of curves, or of dots.
        columns: panels in a row.
        title: of the picture.
    """

    panels: Sequence[Panel] | Sequence[Dots]
    columns: int
    title: str

    def rendered(self, kind: str = "png") -> bytes:
        """The picture as a file.

        Args:
            kind: "png", "svg" or "pdf".
        """
        dots = [panel for panel in self.panels if isinstance(panel, Dots)]
        if dots:
            return draw_dots(dots, self.columns, self.title, kind)
        curves = [panel for panel in self.panels if isinstance(panel, Panel)]
        return draw(curves, self.columns, self.title, kind)

    def stored(self) -> bytes:
        """The drawing as JSON."""
        return (json.dumps(asdict(self), indent=1, default=_named) + "\n").encode()

    @classmethod
    def read(cls, content: bytes) -> Drawing:
        """The drawing that was stored.

        Args:
            content: what `stored` returned.
        """
        found = json.loads(content)
        panels = [_panel(item) for item in found["panels"]]
        return cls(panels, found["columns"], found["title"])


def _named(value: Any) -> str:
    return str(value.name)


def _meaning(name: str | None) -> Meaning | None:
    return None if name is None else Meaning[name]


def _panel(item: dict[str, Any]) -> Any:
    if "series" not in item:
        meanings = {label: _meaning(name) for label, name in item.pop("meanings").items()}
        return Dots(**item, meanings=meanings)
    series = tuple(
        Series(
            s["label"],
            {float(position): values for position, values in s["values"].items()},
            _meaning(s["meaning"]),
        )
        for s in item.pop("series")
    )
    return Panel(**{**item, "categories": tuple(item["categories"])}, series=series)


def _draw_panel(axes: Axes, panel: Panel, looks: Mapping[str, _Look]) -> None:
    for series in panel.series:
        look = looks[series.label]
        found = sorted((position, values) for position, values in series.values.items() if values)
        x = [position for position, _ in found]
        low, high = ([edge(values) for _, values in found] for edge in (min, max))
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
        axes.plot(
            x,
            [mean(values) for _, values in found],
            color=look.colour,
            linestyle=look.dashes,
            marker=look.marker,
            markerfacecolor=look.inside,
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


def _legend(figure: Figure, looks: Mapping[str, _Look], *, lines: bool = True) -> None:
    """All labels, below the panels."""
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            linestyle=look.dashes if lines else "",
            marker=look.marker,
            markerfacecolor=look.inside,
            label=label,
        )
        for label, look in looks.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=_legend_columns(list(looks), figure.get_figwidth()),
        frameon=False,
        fontsize=10,
    )


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
