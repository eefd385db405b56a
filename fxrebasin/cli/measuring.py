"""Losses of models and of what lies between them, before and after their units were aligned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

import fxrebasin
from fxrebasin.cli.ingredients import Ingredients
from fxrebasin.cli.options import AS_THEY_ARE
from fxrebasin.merge.barriers import BarrierCurve, evaluated
from fxrebasin.running.batches import State

Evaluate: TypeAlias = Callable[[nn.Module], Any]
Prepare: TypeAlias = Callable[[nn.Module], nn.Module]

_BEFORE, _AFTER = "merged as they are", "merged after aligning"


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        losses: of models by what they are called: a loss, and an accuracy if there is one.
        curves: on the way between two checkpoints, before and after; only one if units were left
            as they are, none for more than two checkpoints.
    """

    losses: Mapping[str, tuple[float, float | None]]
    curves: tuple[BarrierCurve, ...]

    def document(self) -> dict[str, Any]:
        """Everything, for programs."""
        names = ("barrier_before", "barrier_after")
        return {
            "losses": {n: {"loss": v[0], "accuracy": v[1]} for n, v in self.losses.items()},
            **dict.fromkeys(names),
            **{name: c.as_dict() for name, c in zip(names, self.curves, strict=False)},
        }

    def facts(self) -> list[tuple[str, str]]:
        """Everything, for people."""
        facts = [(f"loss, {name}", _loss(value)) for name, value in self.losses.items()]
        if len(self.curves) == 2:
            before, after = (curve.barrier for curve in self.curves)
            facts.append(("barrier", f"{before:.6g} → {after:.6g}"))
        facts += [("barrier", f"{c.barrier:.6g}") for c in self.curves if len(self.curves) == 1]
        return facts

    def draw(self, path: Path, overwrite: bool) -> Path:
        """A picture of the losses on the way.

        Args:
            path: of the file.
            overwrite: replace a file that exists.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        before, *after = self.curves
        return fxrebasin.plot_barrier(before, next(iter(after), None), path, overwrite=overwrite)


def between(
    made_of: Ingredients, evaluate: Evaluate, steps: int, prepare: Prepare | None = None
) -> tuple[BarrierCurve, ...]:
    """Losses on the way from the first checkpoint to the second, before and after aligning.

    Args:
        made_of: two checkpoints.
        evaluate: from a model to its loss, or to its loss and accuracy.
        steps: number of models on the way.
        prepare: what is done to every model first.
    """
    a = made_of.bench.lay(made_of.checkpoints[0])
    ways = (False,) if made_of.aligned.method == AS_THEY_ARE else (False, True)
    return tuple(
        fxrebasin.barrier(
            a, made_of.whole(1, aligned=aligned), evaluate, steps=steps, prepare=prepare
        )
        for aligned in ways
    )


def losses(
    made_of: Ingredients, evaluate: Evaluate, merged: State, unaligned: State | None
) -> dict[str, tuple[float, float | None]]:
    """Losses of the checkpoints and of what was made of them.

    Args:
        made_of: the checkpoints.
        evaluate: from a model to its loss, or to its loss and accuracy.
        merged: the weights that are written.
        unaligned: what would have been merged with units as they are; None if it is the same.
    """
    module = made_of.bench.module
    states = {str(c.path): made_of.whole(k) for k, c in enumerate(made_of.checkpoints)}
    if unaligned is not None:
        states[_BEFORE] = unaligned
    states[_AFTER if unaligned is not None else _BEFORE] = merged
    found = {}
    for name, state in states.items():
        module.load_state_dict(dict(state), strict=False)
        found[name] = evaluated(module, evaluate)
    return found


def _loss(value: tuple[float, float | None]) -> str:
    loss, accuracy = value
    return f"{loss:.6g}" if accuracy is None else f"{loss:.6g}, accuracy {accuracy:.2%}"
