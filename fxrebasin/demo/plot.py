"""The demo's picture: the loss on the way from A to B, before and after rebasing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxrebasin.colours import Meaning
from fxrebasin.merge import BarrierCurve
from fxrebasin.merge.figures import DrawnCurve, draw_losses, new_figure
from fxrebasin.picturing import rendered

_MEANINGS = {
    (False, False): Meaning.UNTOUCHED,
    (False, True): Meaning.UNTOUCHED_RECALIBRATED,
    (True, False): Meaning.REBASED,
    (True, True): Meaning.RECALIBRATED,
}


@dataclass(frozen=True)
class Panel:
    """The curves of one pair of networks."""

    title: str
    lines: tuple[DrawnCurve, ...]


def line(curve: BarrierCurve, rebased: bool, recomputed: bool = False) -> DrawnCurve:
    """One curve of a panel; its label has the barrier.

    Args:
        curve: what was measured.
        rebased: from A to rebased B, else to B.
        recomputed: with recomputed BatchNorm statistics; such lines are dashed.
    """
    goal = "A to rebased B" if rebased else "A to B"
    suffix = ", BatchNorm statistics recomputed" if recomputed else ""
    label = f"{goal}{suffix}: barrier {curve.barrier:.3f}"
    colour = _MEANINGS[rebased, recomputed].value
    return DrawnCurve(curve, label, colour, "--" if recomputed else "-")


def draw(panels: Sequence[Panel]) -> bytes:
    """Draw the panels side by side and return the picture as PNG."""
    figure = new_figure(len(panels), "Loss between two networks trained from different seeds")
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        draw_losses(axes, panel.lines, "cross-entropy on held-out digits (nats)", panel.title)
    return rendered(figure, "png")
