"""The public functions: analyze, match, apply, transform."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, cast, overload

import torch
from torch import fx, nn

from fxrebasin.alignment import Alignment, Certificate
from fxrebasin.analysis import symmetry_of
from fxrebasin.choices import Choices, choices_for, kinds_named
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.exporters.verify.equivalence import FLOAT64_TOLERANCE, rounding_of
from fxrebasin.kinds import Kinds
from fxrebasin.models.checks import check_usable, first_graph_difference, unwrap
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.models.untying import ties_of, untied
from fxrebasin.options import check_count
from fxrebasin.passes.match.group_methods import GROUP_METHODS, Permuted, match_over_groups
from fxrebasin.passes.match.methods import MatchResult, check_method, match_states
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import AlignmentResult
from fxrebasin.passes.rewrite import rewrite
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.passes.trace.trace import TraceResult, trace
from fxrebasin.permutation import Permutation
from fxrebasin.progress import waiting
from fxrebasin.proof import Proof, proof_of, prove_bits, prove_graph, prove_state
from fxrebasin.reliance import contradictions, refusal
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.running.outputs import Outputs
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.storage.digests import INPUTS_KEY, state_digest
from fxrebasin.storage.reading import Reading
from fxrebasin.storage.reference import ignored_in, patterns_that_fit, reference_weights
from fxrebasin.symmetry import Symmetry

if TYPE_CHECKING:
    from onnx import ModelProto

Reference: TypeAlias = nn.Module | Mapping[str, torch.Tensor] | str | PathLike[str]
"""A module, a state dict, or the path of weights: a file, an index of shards, or a folder."""


OnnxOrModule: TypeAlias = "nn.Module | ModelProto | str | PathLike[str]"
"""A module; or the path of an ONNX file, or such a model in memory."""


@in_own_surroundings
def analyze(
    model: OnnxOrModule,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    symmetry: str = "permutation",
) -> Symmetry:
    """Find the permutations of a model's units that leave its function unchanged.

    The model is run once, in eval mode, on meta tensors; its weights are not looked at, so a model
    on the meta device is enough. It is left as it was. What is found holds for inputs of these
    sizes: a model that treats a batch of one in a way of its own has to be analysed with several
    rows.

    Args:
        model: any module or GraphModule; or the path of an ONNX file, or such a model in memory.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out. Of an
            ONNX file also a mapping of tensors or arrays by the names of its inputs.
        example_kwargs: keyword inputs by name.
        state_buffers: buffers to treat as state that may be permuted, by name or pattern
            (`"*.weight_u"`). Running statistics of normalisation layers always are, and so are
            buffers that scale, shift or mask units one by one (frozen normalisations, spectral
            norm, pruning), if a state dict holds them. Other buffers are constants, and those that
            the result relies on are in `Symmetry.relies_on`.
        outputs: which outputs have to stay as they are: their names as `verify` prints them, or
            patterns of names (`["logits"]`); or a function of what the model returns, that returns
            what counts. All but caches of keys and values when left out; see
            `fxrebasin.running.outputs`.
        symmetry: `"permutation"`; `"signed"` for signs of units as well; or `"all"` for the largest
            group of each class, from permutations to all invertible matrices, and for all numbers
            that may be chosen freely: see `kind` of the classes, `dimension` and `gauges`.

    Raises:
        InputError: the model or its inputs cannot be used, what it returns cannot be looked into,
            a name or pattern fits no buffer or output, or there is no such symmetry.
        CheckpointError: an ONNX file is missing or cannot be read.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> round(analyze(net).log10_order(), 3)  # log10 of 5!
        2.079
    """
    kinds = kinds_named(symmetry)
    if not isinstance(model, nn.Module) and _is_onnx(model):
        from fxrebasin.importers.onnx.finding import symmetry_of_file

        _refuse_kinds(kinds)
        _refuse_buffers(state_buffers)
        given = example_kwargs if example_inputs is None else example_inputs
        return symmetry_of_file(model, given, outputs)
    module = own_structure(unwrap(model))
    check_usable(module, needs_weights=False)
    choices = choices_for(module, state_buffers=state_buffers, outputs=outputs)
    args, kwargs = normalise_inputs(module, example_inputs, example_kwargs, check=False)
    return symmetry_of(module, args, kwargs, choices, kinds)


def _refuse_buffers(state_buffers: Sequence[str]) -> None:
    if state_buffers:
        raise InputError("state_buffers is for modules; an ONNX file has no buffers")


def _refuse_kinds(kinds: Kinds) -> None:
    if kinds is not Kinds.PERMUTATION:
        raise InputError(
            f"symmetry={kinds.value!r}: of ONNX files only permutations are found; pass the "
            "module that the file was made from"
        )


def _is_onnx(model: object) -> TypeGuard[ModelProto | str | PathLike[str]]:
    """Whether a model is an ONNX file, or was read from one; onnx is not loaded to see that."""
    return isinstance(model, str | PathLike) or type(model).__name__ == "ModelProto"


@overload
def match(
    model_b: OnnxOrModule,
    ref: Reference | ModelProto,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str = "weight",
    seed: int = 0,
    *,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
    symmetry: Literal["permutation"] = "permutation",
    untie: bool = False,
    **options: Any,
) -> Permutation: ...


@overload
def match(
    model_b: OnnxOrModule,
    ref: Reference | ModelProto,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str = "weight",
    seed: int = 0,
    *,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
    symmetry: str,
    untie: bool = False,
    **options: Any,
) -> Certificate: ...


def match(
    model_b: OnnxOrModule,
    ref: Reference | ModelProto,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str = "weight",
    seed: int = 0,
    *,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
    symmetry: str = "permutation",
    untie: bool = False,
    **options: Any,
) -> Certificate:
    """Find the permutation of `model_b` that brings its weights closest to those of `ref`.

    The permutation is proved by running `model_b` before and after in float64, on the example
    inputs and on a few other rows. That takes four forward passes, a float64 copy of the model
    and a permuted one of its weights; for a model too large for that there is `verify=False`.

    Args:
        model_b: the model to be permuted; or the path of an ONNX file, or such a model in memory.
        ref: the reference: a module of the same architecture, its state dict, or a file of it; for
            an ONNX file another one of the same graph.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out. Of an
            ONNX file also a mapping of tensors or arrays by the names of its inputs.
        example_kwargs: keyword inputs by name.
        method: `"weight"` is weight matching (Git Re-Basin, arXiv:2209.04836, algorithm 1);
            `"frank_wolfe"` and `"sinkhorn"` search for more of the same agreement, `"activation"`
            (with `loader=`) compares activations on data, and `"straight_through"` and `"learned"`
            (with `loader=` and `loss=`) lower the loss between the models. See docs/matching.md,
            and `fxrebasin.passes` for the options of each.
        seed: the same seed gives the same permutation.
        verify: make sure that the permutation leaves the function of `model_b` as it is.
        state_buffers: see `analyze`.
        outputs: see `analyze`.
        ignore: tensors that are not compared, by name or pattern (`["fc.*"]`), because the
            reference has others in their place, or none: another classifier, another vocabulary,
            another first convolution. They are permuted with their classes all the same. A tensor
            under several names is ignored if all of them are. Where the method runs the reference,
            a module runs with its own tensors in their place; where it runs models between both,
            these have those of `model_b`.
        symmetry: `"permutation"`; `"signed"` for signs of units as well; `"all"` for the largest
            group of each class (see `analyze`): the result is an `Alignment`, not a `Permutation`.
            The methods for the latter two are in `fxrebasin.passes.match.group_methods`.
        untie: give tied parameters copies of their own first. A final scale in front of a head that
            is tied to the embedding keeps a stream from being rotated; the result then fits a class
            that does not tie them.
        **options: of the method.

    Raises:
        ArchitectureMismatchError: model and reference differ in names, shapes or graph.
        EquivalenceError: the permuted model does not compute what the model computes.
        InputError: model, reference, inputs, method or options cannot be used.
        CheckpointError: the file of the reference cannot be read.

    Example:
        >>> a, b = (nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in "ab")
        >>> match(b, ref=a).arrays["0.weight[0]"].shape
        (5,)
    """
    return matched(
        model_b,
        ref,
        example_inputs,
        example_kwargs,
        method,
        seed,
        verify=verify,
        state_buffers=state_buffers,
        outputs=outputs,
        ignore=ignore,
        symmetry=symmetry,
        untie=untie,
        **options,
    ).certificate


@in_own_surroundings
def matched(
    model_b: OnnxOrModule,
    ref: Reference | ModelProto,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str = "weight",
    seed: int = 0,
    *,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
    symmetry: str = "permutation",
    untie: bool = False,
    **options: Any,
) -> RebasinReport:
    """What `match` does, with the figures that `transform` reports; nothing is traced.

    For commands, which permute the tensors of a file as they are stored there.

    Args:
        model_b: see `match`.
        ref: see `match`.
        example_inputs: see `match`.
        example_kwargs: see `match`.
        method: see `match`.
        seed: see `match`.
        verify: see `match`.
        state_buffers: see `match`.
        outputs: see `match`.
        ignore: see `match`.
        symmetry: see `match`.
        untie: see `match`.
        **options: see `match`.

    Raises:
        ArchitectureMismatchError: model and reference differ in names or shapes.
        EquivalenceError: the permuted model does not compute what the model computes.
        InputError: model, reference, inputs, method or options cannot be used.
        CheckpointError: the file of the reference cannot be read.

    Example:
        >>> a, b = (nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in "ab")
        >>> report = matched(b, ref=a)
        >>> report.distance_after <= report.distance_before, report.tracer
        (True, None)
    """
    if not isinstance(model_b, nn.Module) and _is_onnx(model_b):
        from fxrebasin.importers.onnx.transforming import onnx_match

        _refuse_buffers(state_buffers)
        _refuse_kinds(kinds_named(symmetry))
        return onnx_match(
            model_b,
            cast("ModelProto", ref),
            example_inputs=example_kwargs if example_inputs is None else example_inputs,
            method=method,
            seed=seed,
            verify=verify,
            outputs=outputs,
            ignore=ignore,
            **options,
        )
    inputs = (example_inputs, example_kwargs)
    choices = {"state_buffers": state_buffers, "outputs": outputs}
    wanted = (method, options, kinds_named(symmetry))
    request = _Request(unwrap(model_b), cast(Reference, ref), inputs, wanted, choices, ignore)
    if untie:
        request.untie()
    check_count("seed", seed, 0)
    seconds: dict[str, float] = {}
    with _timed(seconds, "analyze"):
        analysed = request.analyze()
    with _timed(seconds, "match"):
        found = request.match(seed, analysed)
    equivalence = None
    if verify:
        with _timed(seconds, "verify"):
            equivalence = prove_state(
                request.model,
                named_state(request.model),
                found.certificate,
                (request.args, request.kwargs),
                request.choices.outputs,
            )
    return _reported(request, analysed, found, seconds, equivalence)


@overload
def apply(
    model_b: nn.Module,
    permutation: Certificate,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
) -> fx.GraphModule: ...


@overload
def apply(
    model_b: ModelProto | str | PathLike[str],
    permutation: Permutation,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
) -> ModelProto: ...


@in_own_surroundings
def apply(
    model_b: OnnxOrModule,
    permutation: Certificate,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
) -> fx.GraphModule | ModelProto:
    """Permute the units of a model; the result owns its weights, and `model_b` is left as it was.

    A permutation may come from a file, and have been found on another state: result and model are
    compared in float64, as `transform` does.

    Args:
        model_b: the model; any module or GraphModule; or the path of an ONNX file, or such a model
            in memory.
        permutation: from `match`, `Symmetry.random`, or `Permutation.load`; or an `Alignment`, for
            the model that it was found on.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name.
        verify: compare result and model (relative error at most 1e-10).
        state_buffers: see `analyze`; those that the permutation was found with when left out. These
            move as they did then; a model whose constants have changed since is analysed with them.
        outputs: see `analyze`; the result returns these, and they are compared. When left out,
            those that the permutation was found with; a function has to be passed again.

    Returns:
        A GraphModule in eval mode with the same state dict keys, shapes and dtypes. Of an ONNX
        file the same model with its weights moved, in memory; `onnx_apply` writes a file.

    Raises:
        ArchitectureMismatchError: the permutation belongs to another architecture, or to the
            symmetry of a state with other constants, such as index tables.
        EquivalenceError: the result does not compute what the model computes.
        InputError: the model or its inputs cannot be used.
        TraceError: no graph can be made of the model; `permutation.permute_state_dict` works.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> permuted = apply(net, analyze(net).random(seed=0))
        >>> x = torch.ones(1, 2)
        >>> torch.allclose(permuted(x), net(x), atol=1e-6)
        True
    """
    if not isinstance(model_b, nn.Module) and _is_onnx(model_b):
        from fxrebasin.importers.onnx.permuting import applied

        _refuse_buffers(state_buffers)
        if not isinstance(permutation, Permutation):
            raise InputError("an alignment acts on a module; of ONNX files only units are permuted")
        given = example_kwargs if example_inputs is None else example_inputs
        return applied(model_b, permutation, given, verify=verify, outputs=outputs)
    module = own_structure(unwrap(model_b))
    check_usable(module)
    chosen = choices_for(module, state_buffers=state_buffers, outputs=outputs)
    choices = chosen.or_those_of(permutation.found_with)
    args, kwargs = normalise_inputs(module, example_inputs, example_kwargs, check=False)
    held = held_by(permutation, module, args, kwargs, choices)
    traced = trace(module, args, kwargs, wanted=choices.outputs)
    result = rewrite(module, held, args, kwargs, traced=traced)
    if verify:
        prove_graph(module, traced, result, held, (args, kwargs), choices.outputs)
    return result


@overload
def held_by(
    permutation: Permutation,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    choices: Choices,
) -> Permutation: ...


@overload
def held_by(
    permutation: Alignment,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    choices: Choices,
) -> Alignment: ...


def held_by(
    permutation: Certificate,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    choices: Choices,
) -> Certificate:
    """A permutation that holds for a model, which is analysed if that is in question."""
    if isinstance(permutation, Alignment):
        own = held_by(permutation.permutation, module, args, kwargs, choices)
        return replace(permutation, permutation=own)
    permutation.check_made_for(module)
    faults = contradictions(permutation.relies_on, named_state(module))
    if not faults:
        return permutation
    found = symmetry_of(module, args, kwargs, choices)
    if not found.identity().has_group_of(permutation):
        raise refusal(faults, "the model's")
    return permutation.relying_on(found.relies_on)


@in_own_surroundings
def transform(
    model_b: nn.Module,
    ref: Reference,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str = "weight",
    seed: int = 0,
    verify: bool | str = True,
    *,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
    symmetry: str = "permutation",
    untie: bool = False,
    **options: Any,
) -> fx.GraphModule:
    """Re-base `model_b` onto `ref`: match, permute, and prove that the function is unchanged.

    Args:
        model_b: the model to be permuted; left as it was.
        ref: the reference: a module of the same architecture, its state dict, or a file of it.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name.
        method: see `match`.
        seed: the same seed gives the same permutation.
        verify: make sure that every tensor of the result is that of `model_b`, permuted, bit for
            bit, and compare both in float64 on a few rows (relative error at most 1e-10); `"exact"`
            does the first only, and runs nothing.
        state_buffers: see `analyze`.
        outputs: see `analyze`; the result returns these, and these are compared.
        ignore: tensors that are not compared; see `match`.
        symmetry: see `match`. Beyond permutations the result is in the gauge of the reference: it
            has its factors, biases and means wherever others make up for them, so that the straight
            line between both is that between their canonical forms.
        untie: see `match`.
        **options: of the method.

    Returns:
        A GraphModule in eval mode with the state dict keys, shapes and dtypes of `model_b`;
        `meta["fxrebasin"]` is a `RebasinReport`.

    Raises:
        ArchitectureMismatchError: model and reference differ in names, shapes or graph.
        EquivalenceError: the result does not compute what the model computes.
        InputError: model, reference, inputs, method or options cannot be used.
        CheckpointError: the file of the reference cannot be read.
        TraceError: no graph can be made of the model; `match` and `permute_state_dict` work.

    Example:
        >>> a, b = (nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in "ab")
        >>> g = transform(b, ref=a)
        >>> g.meta["fxrebasin"].equivalence.passed
        True
    """
    proof = proof_of(verify)
    if proof is Proof.EXACT and symmetry != Kinds.PERMUTATION.value:
        raise InputError(
            f"verify='exact' compares bits, which symmetry={symmetry!r} changes; pass verify=True"
        )
    inputs = (example_inputs, example_kwargs)
    choices = {"state_buffers": state_buffers, "outputs": outputs}
    wanted = (method, options, kinds_named(symmetry))
    request = _Request(model_b, ref, inputs, wanted, choices, ignore)
    if untie:
        request.untie()
    check_count("seed", seed, 0)
    seconds: dict[str, float] = {}
    with _timed(seconds, "trace"):
        traced = request.trace()
    with _timed(seconds, "analyze"):
        analysed = request.analyze()
    with _timed(seconds, "match"):
        found = request.match(seed, analysed)
    with _timed(seconds, "rewrite"):
        result = rewrite(
            request.model, found.certificate, request.args, request.kwargs, traced=traced
        )
    equivalence = None
    if proof is Proof.EXACT:
        with _timed(seconds, "verify"):
            state = named_state(traced.graph_module)
            equivalence = prove_bits(state, named_state(result), found.certificate)
    elif proof is Proof.RUN:
        with _timed(seconds, "verify"):
            equivalence = prove_graph(
                request.model,
                traced,
                result,
                found.certificate,
                (request.args, request.kwargs),
                request.choices.outputs,
            )
    report = _reported(request, analysed, found, seconds, equivalence, traced)
    if verify and isinstance(found, AlignmentResult) and not found.certificate.at_most_signed:
        report = _with_rounding(report, request, result)
    result.meta["fxrebasin"] = report
    result.meta[INPUTS_KEY] = dict(request.digests)
    return result


def _reported(
    request: _Request,
    symmetry: Symmetry,
    found: MatchResult | AlignmentResult,
    seconds: Mapping[str, float],
    equivalence: EquivalenceReport | None,
    traced: TraceResult | None = None,
) -> RebasinReport:
    notes = traced.notes if traced is not None else ()
    return RebasinReport(
        method=request.method,
        objective_before=found.objective_before,
        objective_after=found.objective_after,
        distance_before=found.distance_before,
        distance_after=found.distance_after,
        sweeps=found.sweeps,
        seconds=seconds,
        tracer=traced.tracer if traced is not None else None,
        notes=(*request.notes, *notes, *symmetry.notes, *found.notes),
        equivalence=equivalence,
        certificate=found.certificate,
        log10_order=symmetry.log10_order(),
        unknown_operators=symmetry.unknown_operators,
        ignored=request.ignored,
    )


_ROUNDS_WORSE = 3.0
"""A result that rounds more than this times as badly as the model is spoken of."""


def _with_rounding(
    report: RebasinReport, request: _Request, result: fx.GraphModule
) -> RebasinReport:
    """The report, with how the model and the result round in their own precision."""
    inputs = (request.args, request.kwargs)
    own, other = rounding_of(request.model, result, *inputs, request.choices.outputs)
    notes = report.notes
    if other > _ROUNDS_WORSE * max(own, FLOAT64_TOLERANCE):  # below which all is alike
        notes = (
            *notes,
            f"the result rounds worse than the model: relative errors {other:.2g} and {own:.2g}",
        )
    return replace(report, rounding=(own, other), notes=notes)


_SHOWS_ITS_PROGRESS = "match"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    with nullcontext() if stage == _SHOWS_ITS_PROGRESS else waiting(stage):
        yield
    seconds[stage] = time.perf_counter() - began


class _Request:
    """What a caller asked for: a model and a reference, checked before any work."""

    def __init__(
        self,
        model_b: nn.Module,
        ref: Reference,
        inputs: tuple[Any, Mapping[str, Any] | None],
        wanted: tuple[str, Mapping[str, Any], Kinds],
        choices: Mapping[str, Any],
        ignore: Sequence[str],
    ) -> None:
        self.method, options, self.kinds = wanted
        if self.kinds is Kinds.PERMUTATION:
            check_method(self.method, options)
        else:
            check_method(self.method, options, GROUP_METHODS)
        self.model = own_structure(unwrap(model_b))
        check_usable(self.model)
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
        return symmetry_of(self.model, self.args, self.kwargs, self.choices, self.kinds)

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

    def match(self, seed: int, symmetry: Symmetry | None = None) -> MatchResult | AlignmentResult:
        own = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        symmetry = symmetry or self.analyze()
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

    @cached_property
    def digests(self) -> dict[str, str]:
        """What tells the two states from others."""
        return {
            "model": state_digest(dict(self.model.state_dict())),
            "reference": state_digest(self.state_a),
        }
