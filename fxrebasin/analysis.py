"""Analysis: from a model to its symmetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from fxrebasin.architecture import Architecture
from fxrebasin.choices import Choices
from fxrebasin.errors import InputError
from fxrebasin.kinds import Kinds
from fxrebasin.layout import PermutationClass, UnitClass
from fxrebasin.models.example_inputs import wrong_inputs
from fxrebasin.passes.explain.data_flow import data_flow
from fxrebasin.passes.explain.tie_graph import tie_graph
from fxrebasin.passes.group.group import group
from fxrebasin.passes.propagate.propagation import Passing
from fxrebasin.passes.recognition import Finding, recognised_state
from fxrebasin.reliance import Reliance
from fxrebasin.running.collector import collector_paused
from fxrebasin.running.messages import out_of_memory
from fxrebasin.symmetry import Symmetry, log10_order
from fxrebasin.wording import spoken

_NO_CHOICES = Choices()

_MOST_TRIED = 8
"""How many groups of outputs are tried, at most, to find out whether they cost anything."""


def symmetry_of(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    choices: Choices = _NO_CHOICES,
    kinds: Kinds = Kinds.PERMUTATION,
    *,
    values: bool = True,
) -> Symmetry:
    """The symmetry of one call of a model; see `fxrebasin.analyze`.

    Args:
        model: any module.
        args: positional inputs.
        kwargs: keyword inputs.
        choices: of the user.
        kinds: which groups are looked for.
        values: False if the model's parameters have values somewhere else, which can be had.

    Raises:
        NeedsValuesError: the model has to be run with these values.
        InputError: the model does not run on the inputs, or has no such outputs.
    """
    with collector_paused():
        try:
            found = recognised_state(model, args, kwargs, choices, values=values)
        except Exception as error:
            if out_of_memory(error):
                raise wrong_inputs(model, args, kwargs, error) from error
            raise
    propagation, grouping = found.propagation, found.grouping
    names = {item.name: item.names for item in propagation.held}
    parameters = [name for name, _ in model.named_parameters()]
    kept = set(model.state_dict(keep_vars=True)) | {n for n, _ in model.named_parameters()}
    found_symmetry = Symmetry(
        classes=tuple(_with_all_names(c, names) for c in grouping.classes),
        layout={
            alias: groups
            for name, groups in grouping.layout.items()
            for alias in names[name]
            if alias in kept
        },
        pins={
            (alias, axis): reason
            for (name, axis), reason in grouping.pins.items()
            for alias in names[name]
        },
        unknown_operators=tuple(propagation.unknown),
        shapes={
            alias: shape for name, shape in propagation.shapes.items() for alias in names[name]
        },
        parameters=tuple(parameters),
        operators=dict(propagation.operators),
        _notes=(*propagation.notes, *found.notes, *_about_choice(choices)),
        relies_on=_relied_on(found),
        found_with=replace(choices.kept(), architecture=Architecture.of(model)),
        _graph=partial(tie_graph, propagation, grouping.fields, parameters),
        _flow=partial(data_flow, propagation, grouping.fields, grouping.classes, grouping.layout),
        _about_passing=partial(_about_passing, propagation.passing, log10_order(grouping.classes)),
    )
    if kinds is Kinds.PERMUTATION:
        return found_symmetry
    return _with_groups(found_symmetry, model, (args, kwargs), choices, kinds)


def _with_groups(
    symmetry: Symmetry,
    model: nn.Module,
    inputs: tuple[Sequence[Any], Mapping[str, Any]],
    choices: Choices,
    kinds: Kinds,
) -> Symmetry:
    """The symmetry, with the groups beyond permutations.

    Raises:
        InputError: state that has units is complex.
    """
    from fxrebasin.passes.kinds.find import kinds_of
    from fxrebasin.passes.kinds.functional import functional_graph
    from fxrebasin.passes.kinds.regauge import with_shifts

    held = (*model.named_parameters(), *model.named_buffers())
    units = [name for name, item in held if item.is_complex() and name in symmetry.layout]
    if units:
        raise InputError(
            f"symmetry={kinds.value!r} computes with real numbers, and units of this model have "
            f"complex ones ({', '.join(units)}); pass symmetry='permutation', which moves them"
        )
    with collector_paused():
        graph = functional_graph(model, *inputs, choices.outputs)
        if isinstance(graph, str):
            note = f"only permutations were looked for, since operators cannot be listed: {graph}"
            return replace(symmetry, _notes=(*symmetry._notes, note))
        groups = kinds_of(graph, symmetry.classes, symmetry.layout, symmetry.parameters)
    if kinds is Kinds.SIGNED:
        groups = groups.signed()
    else:
        groups = groups.regauged(symmetry.parameters)
        shifted = partial(with_shifts, graph=graph, groups=groups)
        groups = replace(groups, shifted=shifted if groups.shifts else None)
    classes = tuple(
        UnitClass(c.name, c.size, c.within, c.count, c.axes, groups.kinds[c.name].kind)
        for c in (*symmetry.classes, *groups.turned)
    )
    return replace(symmetry, classes=classes, groups=groups)


def _about_choice(choices: Choices) -> tuple[str, ...]:
    if choices.outputs is None:
        return ()
    counts = (
        ", ".join(choices.outputs)
        if isinstance(choices.outputs, tuple)
        else "what the function outputs= returns"
    )
    return (f"only these outputs stay as they are: {counts}; others may change",)


def _about_passing(passing: Passing | None, order: float) -> tuple[str, ...]:
    """What is lost by keeping outputs that the model itself goes on with, if anything is."""
    if passing is None or _order(passing) <= order:
        return ()
    costly: list[str] = []
    count = len(passing.outputs)
    size = -(-count // _MOST_TRIED)
    with collector_paused():
        for start in range(0, count, size):
            some = passing.outputs[start : start + size]
            pinned = passing.pinning(some)
            if _order(pinned) < _order(passing):
                costly += [item.name for item in some]
            else:
                passing = pinned
    names = ", ".join(dict.fromkeys(costly))
    return (
        f"the model goes on with its outputs {names}, and they are pinned as all outputs are: with "
        f"{spoken('outputs=', '--outputs')} naming only the others, log10 of the order would be "
        f"{_order(passing):.4f} instead of {order:.4f}",
    )


def _order(passing: Passing) -> float:
    return log10_order(group(passing.without).classes)


def _with_all_names(item: PermutationClass, names: Mapping[str, Sequence[str]]) -> PermutationClass:
    axes = tuple((alias, axis) for name, axis in item.axes for alias in names[name])
    return replace(item, axes=axes)


def _relied_on(found: Finding) -> dict[str, Reliance]:
    """What the analysis read of constants, unless there is nothing that it could be wrong about."""
    if not found.grouping.classes:
        return {}
    by_value = found.propagation.relied.by_value
    return {
        alias: Reliance.on(item.tensor, by_value=by_value[item.name])
        for item in found.propagation.held
        if item.name in by_value
        for alias in item.names
    }
