"""Models in the canonical gauge, and what was found there in the gauge of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxrebasin.acting import factors_of, refactored
from fxrebasin.gauge_values import marks_of
from fxrebasin.groups import Groups
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.kinds.regauge import centred
from fxrebasin.storage.alignment_file import GaugeValues


@dataclass(frozen=True, eq=False)
class Canonical:
    """A state whose free numbers are chosen in one way: factors are ones, shifts and means zeros.

    Attributes:
        state: canonical, float64 by name.
        plain: the state with its own factors and means, but without shifts.
        gauge: what the state had chosen itself.
    """

    state: Mapping[str, Tensor]
    plain: Mapping[str, Tensor]
    gauge: GaugeValues


def canonical(
    state: Mapping[str, Tensor], groups: Groups, classes: Sequence[PermutationClass]
) -> Canonical:
    """The canonical form of a state.

    Args:
        state: complete, float64 by name; left as it is.
        groups: that act on it.
        classes: that may be permuted.

    Raises:
        InputError: a factor is zero where something is added behind it that nothing can take back.
    """
    plain = dict(state) if groups.shifted is None else groups.shifted(state, None)
    without = centred(plain, groups, classes)
    added = {k: without[k] - state[k] for k in state if without[k] is not state[k]}
    gauge = _gauge(state, groups, classes, added)
    return Canonical(refactored(without, groups, classes, {}), plain, gauge)


def in_gauge_of(
    reference: Canonical,
    original: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
    groups: Groups,
    classes: Sequence[PermutationClass],
) -> tuple[dict[str, Tensor], GaugeValues]:
    """A canonical state with the factors, shifts and means of a reference.

    Args:
        reference: its canonical form.
        original: the reference as it is.
        moved: the state.
        groups: that act on it.
        classes: that may be permuted.

    Returns:
        The state, and its gauge.
    """
    plain = refactored(moved, groups, classes, reference.gauge.factors)
    found = centred(plain, groups, classes, reference.plain)
    if groups.shifted is not None:
        found = groups.shifted(found, original)
    added = {k: plain[k] - found[k] for k in plain if plain[k] is not found[k]}
    return found, _gauge(found, groups, classes, added)


def _gauge(
    state: Mapping[str, Tensor],
    groups: Groups,
    classes: Sequence[PermutationClass],
    added: Mapping[str, Tensor],
) -> GaugeValues:
    involved = sorted({*groups.layout, *added} & state.keys()) if added else []
    marks = marks_of({name: state[name] for name in involved})
    return GaugeValues(factors_of(state, groups, classes), added, marks)
