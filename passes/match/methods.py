"""Matching: find the permutation that brings a model's weights closest to those of a reference.

One file holds one method; here they get their names, and their options are checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.passes.match.activation import match_activations
from fxrebasin.passes.match.frank_wolfe import match_frank_wolfe
from fxrebasin.passes.match.learned import match_learned
from fxrebasin.passes.match.problem import HasSymmetry, MatchingProblem
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.passes.match.sinkhorn import match_sinkhorn
from fxrebasin.passes.match.straight_through import match_straight_through
from fxrebasin.passes.match.weight import match_weights
from fxrebasin.reliance import contradictions
from fxrebasin.symmetry import Symmetry
from fxrebasin.wording import spoken

__all__ = ["METHODS", "MatchResult", "Method", "check_method", "match_states"]

Method: TypeAlias = Callable[..., MatchResult]
"""A matching method: takes a `MatchingProblem`; keyword arguments are its options.

An option without a default has to be given by the caller.
"""

METHODS: Mapping[str, Method] = {
    "activation": match_activations,
    "frank_wolfe": match_frank_wolfe,
    "learned": match_learned,
    "sinkhorn": match_sinkhorn,
    "straight_through": match_straight_through,
    "weight": match_weights,
}

_OF_ALL = ("classes",)
"""Options that every method has: those that pose the problem."""

_BEYOND = " for symmetries beyond permutation"

_SHOWN = {
    "loader": (
        "loader=..., any iterable of batches: (inputs, targets), or inputs alone",
        "--data, a package.module:callable that returns batches, (inputs, targets) or inputs "
        "alone, or a folder of images or texts",
    ),
    "loss": (
        "loss=..., a function of (outputs, targets) such as torch.nn.functional.cross_entropy",
        "--loss, a function of (outputs, targets) such as torch.nn.functional:cross_entropy",
    ),
}
"""What to pass, in Python and on the command line."""

OTHER_CONSTANTS = (
    "The constants of the reference differ from the model's, and the permutation holds for the "
    "model alone:"
)


def check_method(
    method: object,
    options: Mapping[str, object],
    methods: Mapping[str, Callable[..., object]] = METHODS,
    *,
    given: Collection[str] = (),
) -> None:
    """Refuse a method or options that do not exist, or that are missing, before any work.

    Args:
        method: a key of `methods`.
        options: by name, as the caller gave them.
        methods: those that there are.
        given: names of what a method is given beside its options.

    Raises:
        InputError: naming those that do exist, or showing what to pass.
    """
    if not isinstance(method, str) or method not in methods:
        beyond = "" if methods is METHODS else _BEYOND
        raise InputError(f"no method {method!r}{beyond}; there are: {', '.join(sorted(methods))}")
    _, *parameters = inspect.signature(methods[method]).parameters.values()
    own = [parameter for parameter in parameters if parameter.name not in given]
    allowed = [*(parameter.name for parameter in own), *(() if given else _OF_ALL)]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise InputError(
            f"method {method!r} has no option {', '.join(map(repr, unknown))}; "
            f"its options are: {', '.join(allowed) or 'none'}"
        )
    missing = [
        parameter.name
        for parameter in own
        if parameter.default is parameter.empty and options.get(parameter.name) is None
    ]
    if missing:
        raise InputError(
            f"method {method!r} needs {' and '.join(missing)}; pass "
            + "; and ".join(spoken(*_SHOWN[name]) for name in missing)
        )


def match_states(
    symmetry: HasSymmetry,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    *,
    method: str = "weight",
    seed: int = 0,
    parameters: Collection[str] | None = None,
    model: nn.Module | None = None,
    classes: Collection[str] | None = None,
    ignored: Collection[str] = (),
    reference: nn.Module | None = None,
    **options: object,
) -> MatchResult:
    """Match with one of `METHODS`.

    Args:
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference.
        method: a key of `METHODS`.
        seed: the same seed gives the same result.
        parameters: names of the state tensors that are parameters; all tensors when left out.
        model: what to run by the methods that look at data; its weights do not matter.
        classes: names of the only classes that may move; all when left out.
        ignored: names of state tensors that are not compared; see `MatchingProblem`.
        reference: the reference as a module, if it is one.
        **options: of the method.

    Raises:
        InputError: there is no such method or option, or what the method raises.
        ArchitectureMismatchError: tensors are missing or differ in shape.
    """
    check_method(method, options)
    problem = MatchingProblem(
        symmetry, state_b, state_a, parameters, model, seed, classes, ignored, reference
    )
    found = METHODS[method](problem, **options)
    found = replace(found, notes=(*problem.notes, *found.notes))
    if not isinstance(symmetry, Symmetry):
        return found
    faults = contradictions(symmetry.relies_on, problem.common_a)
    notes = [f"{OTHER_CONSTANTS} {'; '.join(faults)}."] if faults else []
    permutation = found.permutation.relying_on(symmetry.relies_on, symmetry.found_with)
    return replace(found, permutation=permutation, notes=(*found.notes, *notes))
