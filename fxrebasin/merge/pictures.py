"""The picture of a barrier, as a file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType

from fxrebasin.errors import InputError
from fxrebasin.merge.barriers import BarrierCurve
from fxrebasin.storage.files import publish, refuse_existing

_KINDS = (".png", ".svg")
_NONE: Mapping[str, BarrierCurve] = MappingProxyType({})


def plot_barrier(
    before: BarrierCurve,
    after: BarrierCurve | None = None,
    path: str | PathLike[str] = "barrier.png",
    *,
    others: Mapping[str, BarrierCurve] = _NONE,
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw the losses on the way from A to B, before and after rebasing, and the accuracies.

    The ends are marked, the legend has the barrier of every curve. Curves with accuracies get a
    second panel. matplotlib's global state stays as it is.

    Args:
        before: from A to B.
        after: from A to rebased B.
        path: of the file; PNG or SVG by its suffix.
        others: further curves by their names in the legend.
        title: above the picture.
        overwrite: replace a file that exists.

    Returns:
        The path of the file.

    Raises:
        InputError: the file exists, cannot be written, or is of another kind.

    Example:
        >>> before = BarrierCurve((0.0, 0.5, 1.0), (1.0, 4.0, 3.0))
        >>> after = BarrierCurve((0.0, 0.5, 1.0), (1.0, 2.1, 3.0))
        >>> plot_barrier(before, after, "line.svg").name
        'line.svg'
    """
    file = Path(path)
    if file.suffix.lower() not in _KINDS:
        raise InputError(
            f"{file} does not have the name of a picture; expected one of {', '.join(_KINDS)}"
        )
    refuse_existing([file], overwrite=overwrite)
    publish(
        file, _drawn(before, after, others, title, file.suffix[1:].lower()), overwrite=overwrite
    )
    return file


def _drawn(
    before: BarrierCurve,
    after: BarrierCurve | None,
    others: Mapping[str, BarrierCurve],
    title: str | None,
    kind: str,
) -> bytes:
    # matplotlib takes half as long to import as torch, and most programs draw nothing.
    from fxrebasin.merge import figures

    named = [("A to B", before, figures.BEFORE)]
    named += [] if after is None else [("A to rebased B", after, figures.AFTER)]
    named += [
        (name, curve, figures.OTHERS[k % len(figures.OTHERS)])
        for k, (name, curve) in enumerate(others.items())
    ]
    lines = [
        figures.DrawnCurve(
            curve, f"{name}: barrier {curve.barrier:.3f}", colour, k >= 2 + len(figures.OTHERS)
        )
        for k, (name, curve, colour) in enumerate(named)
    ]
    accurate = [line for line in lines if line.curve.accuracies is not None]
    figure = figures.new_figure(2 if accurate else 1, title)
    figures.draw_losses(figure.add_subplot(1, 2 if accurate else 1, 1), lines, "loss")
    if accurate:
        figures.draw_accuracies(figure.add_subplot(1, 2, 2), accurate)
    return figures.rendered(figure, kind)
