"""The demo's picture: the loss on the way from A to B, before and after rebasing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fxrebasin.demo.barrier import Curve

# Two colours that stay apart for colour-blind readers (Okabe and Ito).
BEFORE = "#D55E00"
AFTER = "#0072B2"


@dataclass(frozen=True)
class Line:
    """One curve of a panel. `rebased` decides its colour, `recomputed` its dashes."""

    curve: Curve
    rebased: bool
    recomputed: bool = False

    @property
    def label(self) -> str:
        """What the legend says, with the barrier."""
        goal = "A to rebased B" if self.rebased else "A to B"
        suffix = ", BatchNorm statistics recomputed" if self.recomputed else ""
        return f"{goal}{suffix}: barrier {self.curve.barrier():.3f}"


@dataclass(frozen=True)
class Panel:
    """The curves of one pair of networks."""

    title: str
    lines: tuple[Line, ...]


def draw(panels: Sequence[Panel]) -> bytes:
    """Draw the panels side by side and return the picture as PNG.

    Uses matplotlib's object interface only: pyplot's global state and backend stay untouched.
    """
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(6.2 * len(panels), 5.0), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle("Loss between two networks trained from different seeds", fontsize=14)
    for index, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(1, len(panels), index + 1), panel)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        colour = AFTER if line.rebased else BEFORE
        axes.plot(
            line.curve.steps,
            line.curve.losses,
            color=colour,
            linestyle="--" if line.recomputed else "-",
            linewidth=2,
            marker="o",
            markersize=4,
            markerfacecolor="white" if line.recomputed else colour,
            label=line.label,
        )
    top = max(max(line.curve.losses) for line in panel.lines)
    # Head room for the legend, so that it covers no curve whatever the shape.
    axes.set_ylim(-0.03 * top, top * (1.12 + 0.09 * len(panel.lines)))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0\nA", "0.25", "0.5\nmidpoint", "0.75", "1\nB"])
    axes.set_xlabel("t, for weights (1 − t)·A + t·B")
    axes.set_ylabel("cross-entropy on held-out digits (nats)")
    axes.set_title(panel.title, fontsize=12)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", fontsize=9, frameon=False, handlelength=3.5)
