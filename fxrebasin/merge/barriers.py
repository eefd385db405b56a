"""The barrier: how much worse the models between two others are (Git Re-Basin, eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.facts import Brief
from fxrebasin.merge.curves import check_positions
from fxrebasin.merge.interpolation import interpolate
from fxrebasin.progress import LateBar
from fxrebasin.running.preserve import set_eval

Evaluate: TypeAlias = Callable[[nn.Module], Any]
"""From a model to its loss, or to its loss and accuracy."""


@dataclass(frozen=True, repr=False)
class BarrierCurve(Brief):
    """Losses, and accuracies where they were measured, on the way from one model to another.

    Args:
        positions: from 0 to 1, both ends included.
        losses: in the unit that the caller measures in.
        accuracies: None if there are none.
    """

    positions: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None = None

    @property
    def barrier(self) -> float:
        """Largest excess of the loss over the straight line between the losses of both ends.

        Never below 0; NaN where a loss is.

        Example:
            >>> BarrierCurve((0.0, 0.5, 1.0), (1.0, 4.0, 3.0)).barrier
            2.0
        """
        first, last = self.losses[0], self.losses[-1]
        excess = [
            loss - ((1 - t) * first + t * last)
            for t, loss in zip(self.positions[1:-1], self.losses[1:-1], strict=True)
        ]
        if any(math.isnan(value) for value in (first, last, *excess)):
            return math.nan
        return max([0.0, *excess])

    @property
    def midpoint(self) -> tuple[float, float | None]:
        """Loss and accuracy (None if there is none) half way, or at the position nearest to it.

        Example:
            >>> BarrierCurve((0.0, 0.5, 1.0), (1.0, 4.0, 3.0)).midpoint
            (4.0, None)
        """
        middle = min(range(len(self.positions)), key=lambda k: abs(self.positions[k] - 0.5))
        return self.losses[middle], None if self.accuracies is None else self.accuracies[middle]

    def _facts(self) -> list[tuple[str, str]]:
        facts = [
            ("models", str(len(self.positions))),
            ("losses", f"{self.losses[0]:.6g} … {self.losses[-1]:.6g}"),
            ("half way", f"{self.midpoint[0]:.6g}"),
            ("barrier", f"{self.barrier:.6g}"),
        ]
        if self.accuracies is not None:
            facts.append(("accuracies", f"{self.accuracies[0]:.2%} … {self.accuracies[-1]:.2%}"))
        return facts

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "positions": list(self.positions),
            "losses": list(self.losses),
            "accuracies": None if self.accuracies is None else list(self.accuracies),
            "barrier": self.barrier,
        }


def barrier(
    a: nn.Module,
    b: Any,
    evaluate: Evaluate,
    *,
    steps: int = 11,
    prepare: Callable[[nn.Module], nn.Module] | None = None,
    path: str = "linear",
    **options: Any,
) -> BarrierCurve:
    """Evaluate models on the way from `a` to `b`, both ends included.

    Args:
        a: the model at 0; never modified.
        b: the model at 1: a module, a state dict, or the path of a file of weights.
        evaluate: from a model, in eval mode and without gradients, to its loss, or to its loss
            and accuracy.
        steps: number of models, evenly spaced.
        prepare: what is done to every model first, the ends included; returns the model to
            evaluate. For example `lambda model: fxrebasin.recalibrate(model, loader)`.
        path: see `interpolate`.
        **options: of `interpolate`, for `path="bezier"`.

    Raises:
        ArchitectureMismatchError: the models differ in names, shapes or ties of their tensors.
        CheckpointError: a file cannot be read.
        InputError: a model or an option cannot be used, or `evaluate` returns something else.

    Example:
        >>> import fxrebasin
        >>> a, b = (torch.nn.Linear(2, 1) for _ in "ab")
        >>> curve = fxrebasin.barrier(a, b, lambda model: model(torch.ones(1, 2)).abs(), steps=5)
        >>> len(curve.losses), curve.barrier >= 0
        (5, True)
    """
    positions = check_positions(steps, options.get("positions"))
    if positions[0] != 0 or positions[-1] != 1:
        raise InputError("a barrier is measured between its ends: positions begin at 0, end at 1")
    measured: list[tuple[float, float | None]] = []
    with closing(LateBar()) as report:
        for model in interpolate(a, b, steps=steps, path=path, **options):
            report("evaluating on the way", len(measured), len(positions))
            measured.append(evaluated(prepare(model) if prepare else model, evaluate))
    losses = tuple(loss for loss, _ in measured)
    found = tuple(accuracy for _, accuracy in measured if accuracy is not None)
    return BarrierCurve(positions, losses, found if len(found) == len(losses) else None)


def evaluated(model: nn.Module, evaluate: Evaluate) -> tuple[float, float | None]:
    """Loss and accuracy (None if there is none) of a model, which is put in eval mode.

    Args:
        model: what is evaluated.
        evaluate: from a model to its loss, or to its loss and accuracy.

    Raises:
        InputError: `evaluate` returns something else.

    Example:
        >>> evaluated(torch.nn.Identity(), lambda model: (2.0, 0.5))
        (2.0, 0.5)
    """
    set_eval(model)
    with torch.no_grad():
        found = evaluate(model)
    values = found if isinstance(found, tuple | list) else (found,)
    numbers = [float(v) for v in values if _is_scalar(v)]
    if len(numbers) != len(values) or len(values) not in (1, 2):
        raise InputError(f"evaluate has to return a loss, or a loss and an accuracy, got {found!r}")
    return numbers[0], numbers[1] if len(numbers) == 2 else None


def _is_scalar(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) or hasattr(value, "__float__")
