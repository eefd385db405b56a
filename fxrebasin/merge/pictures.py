"""Pictures of barriers and of units, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from fxrebasin.alignment import Alignment
from fxrebasin.colours import Meaning, colour_of
from fxrebasin.errors import InputError
from fxrebasin.merge.barriers import BarrierCurve
from fxrebasin.merge.likeness import Comparison, chosen
from fxrebasin.merge.states import own_state, usable
from fxrebasin.permutation import Permutation
from fxrebasin.picturing import kind_of, rendered
from fxrebasin.progress import waiting
from fxrebasin.running.batches import State
from fxrebasin.storage.files import publish, refuse_existing
from fxrebasin.wording import listed

_NAMED = 10  # classes in a message
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
        path: of the file; PNG, SVG or PDF by its suffix.
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
    kind = kind_of(file)
    refuse_existing([file], overwrite=overwrite)
    publish(file, _drawn(before, after, others, title, kind), overwrite=overwrite)
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

    named = [("A to B", before, (Meaning.UNTOUCHED.value, "-"))]
    named += [] if after is None else [("A to rebased B", after, (Meaning.REBASED.value, "-"))]
    named += [(name, curve, colour_of(k)) for k, (name, curve) in enumerate(others.items())]
    lines = [
        figures.DrawnCurve(curve, f"{name}: barrier {curve.barrier:.3f}", colour, dashes)
        for name, curve, (colour, dashes) in named
    ]
    accurate = [line for line in lines if line.curve.accuracies is not None]
    figure = figures.new_figure(2 if accurate else 1, title)
    figures.draw_losses(figure.add_subplot(1, 2 if accurate else 1, 1), lines, "loss")
    if accurate:
        figures.draw_accuracies(figure.add_subplot(1, 2, 2), accurate)
    return rendered(figure, kind)


def plot_alignment(
    a: Any,
    b: Any,
    rebased: Permutation | Alignment,
    path: str | PathLike[str] = "alignment.png",
    *,
    classes: Sequence[str] = (),
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw how alike the units of two models are, class by class, before and after rebasing.

    Each class has two matrices, A's units (rows) against B's (columns) before and after. Two units
    are as alike as the cosine of the angle between all that the weights hold for them; units that
    were brought together lie on the diagonal. Units of wide classes share cells, which show the
    largest by magnitude; copies, such as heads, follow each other. Where there are more than 12
    classes, PNG and SVG show 12, of repeated layers the first and the last before others, and say
    what is left out; a PDF has a page for every 12. matplotlib's global state stays as it is.

    Args:
        a: the reference: a module, or its state dict.
        b: the model as it was: a module, or its state dict.
        rebased: what rebases it, from `match` or from the report of `transform`.
        path: of the file; PNG, SVG or PDF by its suffix.
        classes: names of classes; all or 12 when left out.
        title: above the picture.
        overwrite: replace a file that exists.

    Returns:
        The path of the file.

    Raises:
        InputError: the file exists, cannot be written, or is of another kind; a class is not there,
            or there is none that could be drawn.
        ArchitectureMismatchError: B has not the tensors that `rebased` acts on.

    Example:
        >>> import torch, fxrebasin
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh()) for _ in "ab")
        >>> a, b = (torch.nn.Sequential(m, torch.nn.Linear(5, 3)) for m in (a, b))
        >>> plot_alignment(a, b, fxrebasin.match(b, ref=a), "units.svg").name
        'units.svg'
    """
    file = Path(path)
    kind = kind_of(file)
    refuse_existing([file], overwrite=overwrite)
    comparison = Comparison.of(_tensors(a, "a"), _tensors(b, "b"), rebased)
    _check_named(classes, comparison)
    with waiting("comparing units"):
        publish(file, _drawn_units(comparison, classes, title, kind), overwrite=overwrite)
    return file


def _tensors(model: Any, label: str) -> State:
    """The tensors of a module or of a state dict."""
    if not isinstance(model, Mapping):
        return own_state(usable(model, label))
    found = {name: item.detach() for name, item in model.items() if isinstance(item, Tensor)}
    if not found:
        raise InputError(f"{label} holds no tensors; give a module or its state dict")
    return found


def _check_named(names: Sequence[str], comparison: Comparison) -> None:
    """Refuse classes that are not there, and models without any."""
    known = [c.name for c in comparison.classes]
    if not known:
        raise InputError(
            "there is no class whose units could be drawn: the models have no tensors of one "
            "shape whose units may move"
        )
    if isinstance(names, str):
        raise InputError(f"classes are given as a sequence of names; found the text {names!r}")
    strays = [name for name in names if name not in known]
    if strays:
        raise InputError(
            f"{listed(strays, _NAMED)} {'is' if len(strays) == 1 else 'are'} no class of what "
            f"rebases b; there are {listed(known, _NAMED)}"
        )


def _drawn_units(
    comparison: Comparison, names: Sequence[str], title: str | None, kind: str
) -> bytes:
    from fxrebasin.merge import matrices

    wanted = chosen(comparison, matrices.MOST if kind != "pdf" else len(comparison.classes), names)
    left = [] if names else [c for c in comparison.classes if c not in wanted]
    drawn = [comparison.likeness(c) for c in wanted]
    pages = [drawn[k : k + matrices.MOST] for k in range(0, len(drawn), matrices.MOST)]
    if kind != "pdf":
        pages = [drawn]
    scale = matrices.scale_of(drawn)
    figures = []
    for number, page in enumerate(pages, start=1):
        where = f", page {number} of {len(pages)}" if len(pages) > 1 else ""
        above = title or f"How alike the units of A and B are{where}"
        figures.append(matrices.figure_of(page, scale, above, matrices.about(len(left))))
    return rendered(figures, kind)
