"""How curves between models look; the picture of the demo is drawn with the same lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fxrebasin.merge.barriers import BarrierCurve

_TICKS = ([0, 0.25, 0.5, 0.75, 1], ["0\nA", "0.25", "0.5\nmidpoint", "0.75", "1\nB"])


@dataclass(frozen=True)
class DrawnCurve:
    """A curve with the way it is drawn.

    Args:
        curve: what was measured.
        label: for the legend.
        colour: as matplotlib takes it.
        dashes: of the line, as matplotlib takes them; all but "-" have hollow points.
    """

    curve: BarrierCurve
    label: str
    colour: str
    dashes: str = "-"

    @property
    def inside(self) -> str:
        """The colour inside of points."""
        return self.colour if self.dashes == "-" else "white"


def new_figure(panels: int, title: str | None) -> Figure:
    """An empty figure for panels side by side, without pyplot and its global state.

    Args:
        panels: how many.
        title: above all of them.
    """
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(6.2 * panels, 5.0), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    if title is not None:
        figure.suptitle(title, fontsize=14)
    return figure


def draw_losses(axes: Axes, lines: Sequence[DrawnCurve], unit: str, title: str = "") -> None:
    """Losses over the position, with room for the legend, ends and midpoint marked.

    Args:
        axes: where to draw.
        lines: at least one.
        unit: what a loss is, with its unit.
        title: above the panel.
    """
    _draw(axes, lines, [line.curve.losses for line in lines], unit, title)
    top = max(max(line.curve.losses) for line in lines)
    bottom = min(0.0, *(min(line.curve.losses) for line in lines))
    if math.isfinite(top - bottom) and top > bottom:
        # Head room for the legend, so that it covers no curve whatever the shape.
        room = (top - bottom) * (0.12 + 0.09 * len(lines))
        axes.set_ylim(bottom - 0.03 * (top - bottom), top + room)
    axes.legend(loc="upper center", fontsize=9, frameon=False, handlelength=3.5)


def draw_accuracies(axes: Axes, lines: Sequence[DrawnCurve]) -> None:
    """Accuracies over the position; the legend is that of the losses.

    Args:
        axes: where to draw.
        lines: at least one, with accuracies.
    """
    values = [line.curve.accuracies or () for line in lines]
    _draw(axes, lines, values, "accuracy", "")


def _draw(
    axes: Axes,
    lines: Sequence[DrawnCurve],
    values: Sequence[Sequence[float]],
    unit: str,
    title: str,
) -> None:
    for line, heights in zip(lines, values, strict=True):
        axes.plot(
            line.curve.positions,
            heights,
            color=line.colour,
            linestyle=line.dashes,
            linewidth=2,
            marker="o",
            markersize=4,
            markerfacecolor=line.inside,
            label=line.label,
        )
        # The ends are the models themselves.
        axes.plot(
            line.curve.positions[:: len(line.curve.positions) - 1],
            heights[:: len(heights) - 1],
            linestyle="none",
            marker="o",
            markersize=8,
            color=line.colour,
            markerfacecolor=line.inside,
        )
    axes.set_xticks(*_TICKS)
    axes.set_xlabel("t, for weights (1 − t)·A + t·B")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=12)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
