"""What a caller asks for: a model and a reference, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from fxrebasin.analysis import symmetry_of
from fxrebasin.calls.given import Reference
from fxrebasin.choices import choices_for
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.exporters.verify.runs import MadeWhenAsked
from fxrebasin.kinds import Kinds
from fxrebasin.models.checks import check_finite, check_usable, first_graph_difference, unwrap
from fxrebasin.models.emptied import filled, state_for
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.models.untying import ties_of, untied
from fxrebasin.passes.match.group_methods import GROUP_METHODS, Permuted, match_over_groups
from fxrebasin.passes.match.methods import MatchResult, check_method, match_states
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import AlignmentResult
from fxrebasin.passes.propagate.propagate import NeedsValuesError
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.passes.trace.trace import TraceResult, trace
from fxrebasin.running.own_structure import own_structure
from fxrebasin.storage.digests import state_digest
from fxrebasin.storage.reading import Reading
from fxrebasin.storage.reference import ignored_in, patterns_that_fit, reference_weights
from fxrebasin.symmetry import Symmetry

_WEIGHTS_ALONE = (Kinds.PERMUTATION, "weight")
"""What needs no model with weights in it: all other methods run it, or look at values."""


class Request:
    """What a caller asked for: a model and a reference, checked before any work.

    Args:
        model_b: of the caller; the request works on a structure of its own.
        ref: the reference.
        inputs: positional and keyword inputs, as they were passed.
        wanted: the method, its options, and the symmetries.
        choices: `state_buffers` and `outputs`, as they were passed.
        ignore: tensors that are not compared.
        stored: the weights of a model that is emptied; None where it has its own.

    Raises:
        InputError: model, reference, inputs, method or options cannot be used.
        ArchitectureMismatchError: the reference has other tensors.
        CheckpointError: the file of the reference cannot be read.
    """

    def __init__(
        self,
        model_b: nn.Module,
        ref: Reference,
        inputs: tuple[Any, Mapping[str, Any] | None],
        wanted: tuple[str, Mapping[str, Any], Kinds],
        choices: Mapping[str, Any],
        ignore: Sequence[str],
        stored: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.method, options, self.kinds = wanted
        if self.kinds is Kinds.PERMUTATION:
            check_method(self.method, options)
        else:
            check_method(self.method, options, GROUP_METHODS)
        self.model = own_structure(unwrap(model_b))
        self.stored = None if stored is None else state_for(self.model, stored)
        if (self.kinds, self.method) != _WEIGHTS_ALONE:
            self.fill()
        check_usable(self.model, needs_weights=self.stored is None)
        if self.stored is not None:
            held, buffers = self.state(), dict(self.model.named_buffers())
            parameters = {name: held[name] for name, _ in self.model.named_parameters()}
            check_finite(parameters, buffers)
        if isinstance(ref, nn.Module):
            ref = own_structure(unwrap(ref))
        self.reference = ref if isinstance(ref, nn.Module) else None
        patterns = patterns_that_fit(ignore, self.model, [ref])
        weights = reference_weights(ref, self.model, reading=Reading(ignore=patterns))
        self.ignored = ignored_in(self.model, patterns)
        self.compares_all = not patterns
        self.state_a, self.notes = dict(weights.state), weights.notes
        self.choices = choices_for(self.model, **choices)
        self.args, self.kwargs = normalise_inputs(self.model, *inputs, check=False)
        self.options = dict(options)

    def trace(self) -> TraceResult:
        """The graph of the model; refuses a reference with another graph."""
        traced = trace(self.model, self.args, self.kwargs, wanted=self.choices.outputs)
        if isinstance(self.reference, fx.GraphModule) and isinstance(self.model, fx.GraphModule):
            difference = first_graph_difference(traced.graph_module, self.reference)
            if difference is not None and self.compares_all:
                raise ArchitectureMismatchError(
                    f"model and reference have the same weights but other graphs: {difference}"
                )
        return traced

    def analyze(self) -> Symmetry:
        """The symmetries of the model."""
        if self.stored is not None:
            try:
                return symmetry_of(
                    self.model, self.args, self.kwargs, self.choices, self.kinds, values=False
                )
            except NeedsValuesError:
                self.fill()
        return symmetry_of(self.model, self.args, self.kwargs, self.choices, self.kinds)

    def fill(self) -> None:
        """Go on with a copy of the model that has its weights itself."""
        if self.stored is not None:
            self.model, self.stored = filled(self.model, self.stored), None

    def state(self) -> dict[str, Tensor]:
        """All that the model holds, by every name: numbers of 16 bits may be float32 in it."""
        held = {name: tensor.detach() for name, tensor in named_state(self.model).items()}
        return held if self.stored is None else held | self.stored

    def untie(self) -> None:
        """Go on with a copy of the model in which no tensor has two names."""
        if self.kinds is Kinds.PERMUTATION:
            raise InputError(
                "untie=True is of use beyond permutations: pass symmetry='all' with it, or leave "
                "it out"
            )
        ties = ties_of(self.model)
        self.model = untied(self.model)
        for alias, first in ties.items():
            if first in self.state_a:
                self.state_a.setdefault(alias, self.state_a[first])

    def match(self, seed: int, symmetry: Symmetry) -> MatchResult | AlignmentResult:
        """What brings the model closest to the reference.

        Args:
            seed: of the method.
            symmetry: of the model.
        """
        own = self._saved()
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        if self.kinds is not Kinds.PERMUTATION:
            options = dict(self.options)
            plain = MatchingProblem(
                Permuted(symmetry.permuted, symmetry.layout),
                own,
                self.state_a,
                names,
                self.model,
                seed,
                options.pop("classes", None),
                self.ignored,
                self.reference,
            )
            return match_over_groups(symmetry, plain, self.model, method=self.method, **options)
        found = match_states(
            symmetry,
            own,
            self.state_a,
            method=self.method,
            seed=seed,
            parameters=names,
            model=self.model,
            ignored=self.ignored,
            reference=self.reference,
            **self.options,
        )
        kept = found.permutation
        made_from = replace(kept.found_with, states=self.digests)
        return replace(found, permutation=kept.relying_on(kept.relies_on, made_from))

    def _saved(self) -> dict[str, Tensor]:
        """What a state dict of the model has."""
        own = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        return own if self.stored is None else {name: self.stored[name] for name in own}

    @cached_property
    def digests(self) -> dict[str, str]:
        """What tells the two states from others."""
        forms = self.model.state_dict()
        return {
            "model": state_digest(
                MadeWhenAsked(self._saved(), lambda name, tensor: tensor.to(forms[name].dtype))
            ),
            "reference": state_digest(self.state_a),
        }
