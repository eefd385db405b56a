"""The methods that match over the groups of a symmetry; see `fxrebasin.passes.match.group_problem`.

A method may have the name of one for permutations: `symmetry=` decides which of both is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fxrebasin.alignment import Alignment, GaugeValues
from fxrebasin.counted import counted_state
from fxrebasin.groups import Groups
from fxrebasin.kinds import ClassKind, GroupKind
from fxrebasin.layout import Layout, PermutationClass, names_in
from fxrebasin.models.untying import held_by_name, ties_of
from fxrebasin.passes.match.canonical import Canonical, canonical, in_gauge_of
from fxrebasin.passes.match.closeness import closeness
from fxrebasin.passes.match.group_activation import match_activations_over_groups
from fxrebasin.passes.match.group_learned import match_learned_over_groups
from fxrebasin.passes.match.group_many import elements_to_first
from fxrebasin.passes.match.group_many_activation import activations_to_first
from fxrebasin.passes.match.group_many_learned import learned_to_first
from fxrebasin.passes.match.group_problem import Element, GroupProblem, GroupResult
from fxrebasin.passes.match.group_weight import match_weights_over_groups
from fxrebasin.passes.match.methods import OTHER_CONSTANTS
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import AlignmentResult
from fxrebasin.reliance import contradictions
from fxrebasin.symmetry import Symmetry
from fxrebasin.wording import spoken

GroupMethodFunction: TypeAlias = Callable[..., GroupResult]

GROUP_METHODS: Mapping[str, GroupMethodFunction] = {
    "activation": match_activations_over_groups,
    "learned": match_learned_over_groups,
    "weight": match_weights_over_groups,
}
"""By name. Each takes a `GroupProblem`; keyword arguments are its options."""

ManyMethodFunction: TypeAlias = Callable[..., list[Element]]

MANY_METHODS: Mapping[str, ManyMethodFunction] = {
    "activation": activations_to_first,
    "learned": learned_to_first,
    "merge_many": elements_to_first,
}
"""Methods for many models, by name: from a `GroupProblem`, canonical states, how much each counts
and most rounds to elements; keyword arguments are their options."""


@dataclass(frozen=True)
class Permuted:
    """The permutation classes of a symmetry, without those that turn in pairs."""

    classes: tuple[PermutationClass, ...]
    layout: Layout


_FARTHER = (
    "The distance grew: units are matched where both models are balanced, and the reference has "
    "other scales. For models midway between these two, compare what symmetry='permutation' gives."
)


def match_over_groups(
    symmetry: Symmetry,
    plain: MatchingProblem,
    model: nn.Module,
    *,
    method: str = "weight",
    **options: object,
) -> AlignmentResult:
    """Match with one of `GROUP_METHODS`.

    Args:
        symmetry: with groups; without, every class is only permuted.
        plain: the model and the reference as they are, of the permutation classes only.
        model: the module whose state it is; its other names for tied tensors are found there.
        method: a key of `GROUP_METHODS`.
        **options: of the method.

    Raises:
        InputError: what the method raises.
    """
    groups = symmetry.groups or _permutations_only(symmetry)
    groups = groups.regauged(symmetry.parameters)
    classes = symmetry.permuted
    ties = ties_of(model)
    b = _complete(model, plain.state_b, ties)
    a = {**b, **_complete(model, plain.common_a, ties, partly=True)}
    of_b, of_a = (canonical(state, groups, classes) for state in (b, a))
    problem = GroupProblem(
        plain, (*classes, *groups.turned), groups.folded(), of_b.state, of_a.state, ties
    )
    found = GROUP_METHODS[method](problem, **options)
    certificate, moved = _aligned(problem, groups, found.element, of_b.gauge, (of_a, a))
    permutation = certificate.permutation.relying_on(symmetry.relies_on, symmetry.found_with)
    certificate = replace(certificate, permutation=permutation)
    names = problem.compared
    layout = symmetry.layout
    after = closeness(names, counted_state(a, layout), counted_state(moved, layout))
    faults = contradictions(symmetry.relies_on, plain.common_a)
    notes = [f"{OTHER_CONSTANTS} {'; '.join(faults)}."] if faults else []
    notes += [_FARTHER] if after.distance > plain.before.distance else []
    return AlignmentResult(
        certificate,
        objective_before=plain.before.objective,
        objective_after=after.objective,
        distance_before=plain.before.distance,
        distance_after=after.distance,
        sweeps=found.sweeps,
        seconds=time.perf_counter() - plain.posed,
        notes=(*plain.notes, *_about_ties(symmetry, ties), *found.notes, *notes),
    )


def many_over_groups(
    symmetry: Symmetry,
    plain: MatchingProblem,
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    max_sweeps: int,
    method: str,
    **options: object,
) -> list[Alignment]:
    """Alignments of many models with the first one, by one of `MANY_METHODS`.

    Args:
        symmetry: with groups; without, every class is only permuted.
        plain: of any two of the models.
        model: a module of their architecture.
        states: of the models, by name.
        weights: how much each counts.
        max_sweeps: most rounds over the models.
        method: a key of `MANY_METHODS`.
        **options: of the method.

    Raises:
        InputError: what bringing a state into its canonical form raises.
    """
    groups = symmetry.groups or _permutations_only(symmetry)
    groups = groups.regauged(symmetry.parameters)
    classes, ties = symmetry.permuted, ties_of(model)
    complete = [_complete(model, state, ties) for state in states]
    forms = [canonical(state, groups, classes) for state in complete]
    first = forms[0].state
    problem = GroupProblem(plain, (*classes, *groups.turned), groups.folded(), first, first, ties)
    canonical_states = [form.state for form in forms]
    elements = MANY_METHODS[method](problem, canonical_states, weights, max_sweeps, **options)
    reference = (forms[0], complete[0])
    found = []
    for element, form in zip(elements, forms, strict=True):
        of_form = replace(problem, state_b=form.state)
        certificate, _ = _aligned(of_form, groups, element, form.gauge, reference)
        permutation = certificate.permutation.relying_on(symmetry.relies_on, symmetry.found_with)
        found.append(replace(certificate, permutation=permutation))
    return found


def _aligned(
    problem: GroupProblem,
    groups: Groups,
    element: Element,
    source: GaugeValues,
    reference: tuple[Canonical, Mapping[str, Tensor]],
) -> tuple[Alignment, dict[str, Tensor]]:
    """The certificate of an element, and what it makes of the model's state."""
    classes = problem.plain.symmetry.classes
    moved, target = in_gauge_of(*reference, problem.moved(element), groups, classes)
    certificate = Alignment(
        element.permutation, groups, element.elements, source, target, problem.ties
    )
    return certificate, moved


def _about_ties(symmetry: Symmetry, ties: Mapping[str, str]) -> tuple[str, ...]:
    """Which classes could have larger groups if tensors were not tied."""
    groups = symmetry.groups
    if groups is None or not ties:
        return ()
    tied = names_in(symmetry.layout, ties)
    return tuple(
        f"{c.name} keeps the group {c.kind.value!r}, with tensors tied "
        f"({', '.join(f'{a} to {b}' for a, b in ties.items())}): {groups.kinds[c.name].limits[0]}. "
        f"{spoken('untie=True', 'Untying them')} may allow more, for a class that does not tie them"
        for c in symmetry.permuted
        if c.name in tied and not c.kind.has_matrices and groups.kinds[c.name].limits
    )


def _permutations_only(symmetry: Symmetry) -> Groups:
    kinds = {c.name: ClassKind(GroupKind.PERMUTATION, {}, {}) for c in symmetry.classes}
    return Groups(kinds, symmetry.layout)


def _complete(
    model: nn.Module,
    state: Mapping[str, Tensor],
    ties: Mapping[str, str],
    *,
    partly: bool = False,
) -> dict[str, Tensor]:
    """All tensors of a model by their first names, with those of a state in their place.

    Numbers are in double precision, on the CPU.
    """
    found: dict[str, Tensor] = {}
    for name, own in held_by_name(model).items():
        first = ties.get(name, name)
        tensor = state.get(name, None if partly else own)
        if tensor is not None and (first not in found or name == first):
            tensor = tensor.detach().cpu()
            found[first] = tensor.to(torch.float64) if tensor.is_floating_point() else tensor
    return found
