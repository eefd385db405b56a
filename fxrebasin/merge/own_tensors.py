"""A permutation for a model that has tensors of its own, such as another head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.indexing import identity_arrays
from fxrebasin.layout import names_in
from fxrebasin.merge.holding import has_group_of
from fxrebasin.permutation import Permutation
from fxrebasin.running.batches import State
from fxrebasin.symmetry import Symmetry
from fxrebasin.wording import listed, spoken

_LISTED = 8


def symmetry_alone(module: nn.Module, analyse: Callable[[nn.Module], Symmetry]) -> Symmetry | None:
    """The symmetry of a module with tensors of its own; None if it does not run on the inputs.

    Args:
        module: one of the models.
        analyse: from a module to its symmetry.
    """
    try:
        return analyse(module)
    except InputError:
        return None


def in_own_group(
    own: Symmetry, permutation: Permutation, common: Collection[str], label: str
) -> Permutation:
    """A permutation as an element of the group that a model has with its own tensors.

    Args:
        own: of the model as it is.
        permutation: of the model with the tensors of the architecture.
        common: names of the tensors that are in both.
        label: what a message calls the model.

    Raises:
        ArchitectureMismatchError: the model has another symmetry with its own tensors.
    """
    if not has_group_of(own, permutation, common):
        raise ArchitectureMismatchError(
            f"{label} has another symmetry than the first model: with its own tensors in the place "
            "of those that are ignored, other units of the tensors that both have may be permuted "
            "(units of an output never are)"
        )
    shared = names_in(permutation.layout, common)
    arrays = identity_arrays(own.classes)
    arrays |= {name: permutation.arrays[name] for name in arrays if name in shared}
    return Permutation(own.classes, arrays, own.layout, own.relies_on, own.found_with)


def by_shapes(
    permutation: Permutation,
    state: State,
    ours: State,
    ignored: Sequence[str],
    label: str,
    strangers: Sequence[str] = (),
) -> Permutation:
    """A permutation for weights of which nothing but the shapes is known.

    Where they differ from those of the architecture, they have to have as many units along the same
    axes, or units that do not move. What they lack is left out.

    Args:
        permutation: of the model with the tensors of the architecture.
        state: the weights.
        ours: those of the architecture.
        ignored: names of the tensors in which they may differ.
        label: what a message calls the model.
        strangers: names of tensors that are ignored, and that the architecture does not have.

    Raises:
        ArchitectureMismatchError: nothing shows where tensors have units.
    """
    still = {n for n, a in permutation.arrays.items() if (a == np.arange(a.shape[-1])).all()}
    faults = list(strangers)
    layout = dict(permutation.layout)
    for name in (name for name in ignored if name in layout):
        groups = layout.pop(name)
        if name not in state:
            continue
        theirs = state[name].shape
        kept = [g for g in groups if all(_length(theirs, k) == ours[name].shape[k] for k in g.axes)]
        lost = [group for group in groups if group not in kept]
        if names_in({name: tuple(lost)}, [name]) <= still:
            layout[name] = tuple(kept)
        else:
            faults.append(name)
    if faults:
        advice = spoken(
            "pass that model as a module that runs on these inputs",
            "name a MODEL that has such tensors",
        )
        raise ArchitectureMismatchError(
            f"nothing shows where {label} has units in {listed(faults, _LISTED)}, which the "
            f"architecture does not have or has in another shape: {advice}"
        )
    return replace(permutation, layout=layout)


def _length(shape: Sequence[int], axis: int) -> int:
    return shape[axis] if axis < len(shape) else 0
