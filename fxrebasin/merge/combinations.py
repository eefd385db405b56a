"""One model's weights out of those of several: which formula, with what, and on which tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from fxrebasin.errors import InputError
from fxrebasin.merge import formulas
from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.states import is_number
from fxrebasin.merge.views import StateView
from fxrebasin.running.batches import State


class Formula(Enum):
    """How weights are combined; the values are the names that users write."""

    MEAN = "mean"
    SLERP = "slerp"
    TASK_ARITHMETIC = "task_arithmetic"
    TIES = "ties"
    DARE = "dare"

    @property
    def needs_base(self) -> bool:
        """Whether it works on differences from a base model."""
        return self not in (Formula.MEAN, Formula.SLERP)


@dataclass(frozen=True)
class Combination:
    """A formula with its numbers.

    Args:
        formula: what is computed.
        weights: how much each model counts: shares for the mean, factors for the others. One for
            each model; all 1 when left out.
        t: the position of SLERP, from 0 to 1: beyond the two models, variances of their statistics
            would fall below 0.
        density: the share of entries that TIES and DARE keep; those of the papers when left out.
        scale: of the sum of differences.
        seed: of DARE.
    """

    formula: Formula = Formula.MEAN
    weights: ByPattern[tuple[float, ...]] | None = None
    t: ByPattern[float] = field(default_factory=lambda: ByPattern(0.5))
    density: ByPattern[float] | None = None
    scale: float = 1.0
    seed: int = 0

    @property
    def middle(self) -> float:
        """The position between two models that most tensors have."""
        if self.formula is Formula.MEAN and self.weights is not None:
            first, second = self.weights.everywhere
            return second / (first + second)
        return self.t.everywhere

    @property
    def usual_density(self) -> float:
        """That of the paper."""
        dare = self.formula is Formula.DARE
        return formulas.DARE_DENSITY if dare else formulas.TIES_DENSITY

    def document(self) -> dict[str, Any]:
        """The formula and the numbers that it uses, ready for JSON."""
        found: dict[str, Any] = {"formula": self.formula.value}
        if self.formula is Formula.SLERP:
            return {**found, "t": _plain(self.t)}
        found["weights"] = None if self.weights is None else _plain(self.weights)
        if self.formula in (Formula.TIES, Formula.DARE):
            found["density"] = _plain(self.density or ByPattern(self.usual_density))
        if self.formula is Formula.DARE:
            found["seed"] = self.seed
        return {**found, "scale": self.scale} if self.formula.needs_base else found

    def described(self) -> str:
        """The same in words.

        Example:
            >>> Combination(weights=ByPattern((0.3, 0.7))).described()
            'mean, weights 0.3, 0.7'
        """
        parts = []
        for name, value in self.document().items():
            if name != "formula" and value is not None:
                parts.append(f"{name} {_worded(value)}")
        return ", ".join([self.formula.value, *parts])

    def heaviest(self, name: str, count: int) -> int:
        """Index of the model that counts most in a tensor; the first of several.

        What cannot be averaged, such as indices and masks of booleans, is that model's.

        Args:
            name: of the tensor.
            count: of the models.
        """
        if self.formula is Formula.SLERP:
            return int(self.t.of(name) > 0.5)
        if self.weights is None:
            return 0
        weights = self.weights.of(name)
        return max(range(count), key=lambda index: weights[index])

    def check(self, count: int, base: bool) -> None:
        """Refuse numbers that do not fit, before any work.

        Args:
            count: of the models.
            base: whether there is a base model.

        Raises:
            InputError: they do not fit.
        """
        name = self.formula.value
        if base != self.formula.needs_base:
            raise InputError(
                f"{name} works on differences from a base model: name it"
                if self.formula.needs_base
                else f"{name} has no use for a base model: leave it out, or take another formula"
            )
        if self.formula is Formula.SLERP and count != 2:
            raise InputError(f"slerp is a way between two models; there are {count}")
        if self.formula is Formula.SLERP and self.weights is not None:
            raise InputError("slerp has a position t in the place of weights")
        for values in self.weights.values() if self.weights else ():
            _check_weights(values, count, self.formula)
        for density in self.density.values() if self.density else ():
            if not 0 < density <= 1:
                raise InputError(f"density is {density}; it has to be above 0, and at most 1")
        if not math.isfinite(self.scale):
            raise InputError(f"scale is {self.scale}, which is no usable number")
        for t in self.t.values():
            if not 0 <= t <= 1:
                raise InputError(
                    f"t is {t}; it has to be from 0 (the first model) to 1 (the second): beyond "
                    "them, variances that BatchNorm divides by would fall below 0"
                )


def combine(
    states: Sequence[State],
    combination: Combination,
    base: State | None = None,
    *,
    buffers: Collection[str] = (),
    kept: Collection[str] = (),
    ties: Sequence[Sequence[str]] = (),
) -> dict[str, torch.Tensor]:
    """The weights of one model, in the names, the order and the dtypes of the first state.

    Tensors that hold no floating or complex numbers are those of the model that counts most.

    Args:
        states: of models whose units are aligned.
        combination: what is computed.
        base: what the differences are taken from.
        buffers: names of tensors that are no parameters. They describe activations (running
            statistics), and are averaged whatever the formula: a sum of differences would leave
            variances below 0.
        kept: names of tensors that are those of the first state, because others have none like it.
        ties: names that are one tensor; it is computed once.

    Raises:
        InputError: numbers do not fit, or are too large for the dtype of a tensor.

    Example:
        >>> states = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}]
        >>> combine(states, Combination())["w"]
        tensor([2.])
    """
    combination.check(len(states), combination.formula.needs_base)
    again = {name: first for first, *others in ties for name in others}
    own = [name for name in states[0] if name not in again]
    found = {name: states[0][name].detach().clone() for name in own if name in kept}
    averaged = [name for name in own if name in buffers and name not in found]
    computed = [name for name in own if name not in buffers and name not in found]
    shares = _shares(len(states), combination)
    found |= formulas.mean([StateView(state, averaged) for state in states], shares)
    found |= _computed([StateView(state, computed) for state in states], combination, base or {})
    for name in (*averaged, *computed):
        heaviest = combination.heaviest(name, len(states))
        if heaviest and not is_number(found[name]):
            found[name] = states[heaviest][name].detach().to(found[name], copy=True)
    return {name: found[again.get(name, name)] for name in states[0]}


def _computed(
    states: Sequence[State], combination: Combination, base: State
) -> Mapping[str, torch.Tensor]:
    weights = combination.weights or ByPattern((1.0,) * len(states))
    scale, seed = combination.scale, combination.seed
    match combination.formula:
        case Formula.MEAN:
            return formulas.mean(states, weights)
        case Formula.SLERP:
            return formulas.slerp(states[0], states[1], combination.t)
        case Formula.TASK_ARITHMETIC:
            return formulas.task_arithmetic(states, base, weights, scale)
        case Formula.TIES:
            density = combination.density or combination.usual_density
            return formulas.ties(states, base, weights, density, scale)
        case Formula.DARE:
            density = combination.density or combination.usual_density
            return formulas.dare(states, base, weights, density, scale, seed)


def _shares(count: int, combination: Combination) -> formulas.Weights:
    """How much each model counts in an average of statistics."""
    if combination.formula is Formula.SLERP:
        t = combination.t
        rules = tuple((pattern, (1 - value, value)) for pattern, value in t.rules)
        return ByPattern((1 - t.everywhere, t.everywhere), rules, t.classes)
    weights = combination.weights
    if weights is None or any(min(v) < 0 or sum(v) == 0 for v in weights.values()):
        return (1.0,) * count
    return weights


def _plain(values: ByPattern[Any]) -> Any:
    """The one value that there is, or values by pattern."""
    if not values.rules:
        return values.everywhere
    return {"*": values.everywhere, **dict(values.rules)}


def _worded(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{pattern}: {_worded(item)}" for pattern, item in value.items())
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"


def _check_weights(values: Sequence[float], count: int, formula: Formula) -> None:
    if len(values) != count:
        raise InputError(f"weights has {len(values)} numbers for {count} models: {list(values)}")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"weights are {list(values)}; they have to be finite numbers")
    if formula is Formula.TIES and min(values) < 0:
        raise InputError(f"weights are {list(values)}; TIES takes none below 0")
    if formula is Formula.MEAN and (min(values) < 0 or not sum(values)):
        raise InputError(f"weights are {list(values)}; a mean takes none below 0, and not only 0")
