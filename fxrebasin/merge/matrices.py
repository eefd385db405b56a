"""How pairs of matrices look that show units before and after rebasing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from fxrebasin.colours import Meaning
from fxrebasin.facts import counted
from fxrebasin.kinds import GroupKind
from fxrebasin.merge.likeness import Likeness

MOST = 12
"""Classes on one picture or page; more would be too small to read."""

_COLOURS = "RdBu_r"  # white is 0; both ends stay apart for readers who see few colours
_SIDE = 1.6  # inches of a matrix, and of what is around it
_BETWEEN, _APART, _HEADING = 0.12, 0.55, 0.85
_MARGIN, _TOP, _BOTTOM = 0.4, 0.55, 0.95
_LETTERS = 46  # of a name, in each of two lines
_LEAST_SCALE = 0.05
_LEAST_WIDTH = 6.0


def scale_of(drawn: Sequence[Likeness]) -> float:
    """The cosine that has the full colour, the same for all of a picture.

    Args:
        drawn: at least one.
    """
    largest = max(float(grid.abs().max()) for item in drawn for grid in (item.before, item.after))
    return max(largest, _LEAST_SCALE)


def about(left: int) -> str:
    """What stands below the matrices.

    Args:
        left: number of classes that are not drawn.
    """
    text = "rows: units of A, columns: units of B; colour: cosine; figures: mean on the diagonal"
    if left:
        text += (
            f"\n{counted(left, 'further class', 'further classes')} not drawn here; a PDF has all"
        )
    return text


def figure_of(drawn: Sequence[Likeness], scale: float, title: str, words: str) -> Figure:
    """A picture of some classes, without pyplot and its global state.

    Args:
        drawn: at least one class.
        scale: the cosine that has the full colour.
        title: above all.
        words: below all.
    """
    columns = min(len(drawn), 2 if len(drawn) <= 4 else 3)
    rows = math.ceil(len(drawn) / columns)
    step = 2 * _SIDE + _BETWEEN + _APART, _SIDE + _HEADING
    width = max(columns * step[0] - _APART + 2 * _MARGIN, _LEAST_WIDTH)
    left = (width - columns * step[0] + _APART) / 2
    height = rows * step[1] + _TOP + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)

    def placed(x: float, y: float, wide: float, high: float) -> Axes:
        """Axes at some inches from the left and the top."""
        return figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))

    figure.text(0.5, 1 - 0.32 / height, title, fontsize=13, ha="center", va="center")
    for number, item in enumerate(drawn):
        x = left + number % columns * step[0]
        y = _TOP + number // columns * step[1] + _HEADING
        sides = (placed(x + k * (_SIDE + _BETWEEN), y, _SIDE, _SIDE) for k in range(2))
        one, two = sides
        _matrix(one, item.before, f"before: {_figure(item.own_before)}", scale, Meaning.UNTOUCHED)
        _matrix(two, item.after, f"after: {_figure(item.own_after)}", scale, Meaning.REBASED)
        units = f"{item.count} × {item.size}" if item.count > 1 else str(item.size)
        kind = "" if item.kind is GroupKind.PERMUTATION else f", {item.kind.value}"
        heading = f"{_short(item.name)}\n{units} units{kind}"
        figure.text(x / width, 1 - (y - 0.28) / height, heading, fontsize=8.5, va="bottom")
    bar = placed(width / 2 - 1.5, height - _BOTTOM + 0.2, 3, 0.12)
    figure.colorbar(
        ScalarMappable(Normalize(-scale, scale), _COLOURS), cax=bar, orientation="horizontal"
    )
    bar.tick_params(labelsize=8)
    figure.text(0.5, 0.2 / height, words, fontsize=8.5, ha="center", va="center")
    return figure


def _matrix(axes: Axes, grid: Tensor, title: str, scale: float, meaning: Meaning) -> None:
    """One matrix, framed in the colour of what it shows."""
    axes.imshow(
        grid.numpy(), cmap=_COLOURS, vmin=-scale, vmax=scale, interpolation="nearest", aspect="auto"
    )
    axes.set_title(title, fontsize=8.5, color=meaning.value, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(meaning.value)
    axes.spines[:].set_linewidth(1.5)


def _short(name: str) -> str:
    """A name in two lines at most, broken behind dots; of a long one the middle is left out."""
    lines = textwrap.wrap(name.replace(".", ". "), _LETTERS) or [name]
    lines = [line.replace(". ", ".") for line in lines]
    return "\n".join(lines if len(lines) < 3 else [f"{lines[0][:-1]}…", lines[-1]])


def _figure(cosine: float) -> str:
    """Two digits, and no sign of what rounds to zero."""
    return f"{round(cosine, 2) + 0:.2f}"
