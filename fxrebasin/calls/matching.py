"""The calls `match`, and `matched` for commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from torch import Tensor, nn

from fxrebasin.alignment import Certificate
from fxrebasin.calls.given import OnnxOrModule, Reference, is_onnx, refuse_buffers, refuse_kinds
from fxrebasin.calls.reporting import report_of, timed
from fxrebasin.calls.request import Request
from fxrebasin.choices import kinds_named
from fxrebasin.models.checks import unwrap
from fxrebasin.options import check_count
from fxrebasin.permutation import Permutation
from fxrebasin.proof import prove_state
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.running.outputs import Outputs, Wanted
from fxrebasin.running.surroundings import in_own_surroundings

if TYPE_CHECKING:
    from onnx import ModelProto


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

    The permutation is checked by running `model_b` before and after in float64, on the example
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
    if not isinstance(model_b, nn.Module) and is_onnx(model_b):
        from fxrebasin.importers.onnx.transforming import onnx_match

        refuse_buffers(state_buffers)
        refuse_kinds(kinds_named(symmetry))
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
    found = unproved(
        cast(nn.Module, model_b),  # whatever else it is, is refused
        cast(Reference, ref),
        (example_inputs, example_kwargs),
        (method, options, symmetry),
        {"state_buffers": state_buffers, "outputs": outputs},
        seed,
        ignore=ignore,
        untie=untie,
    )
    return found.proved() if verify else found.report


@dataclass(frozen=True)
class Unproved:
    """A permutation that was found, and what it is proved on; the reference is not among it.

    Args:
        report: of the match.
        model: the module.
        state: its weights by name.
        inputs: positional and keyword inputs.
        outputs: which outputs count.
    """

    report: RebasinReport
    model: nn.Module
    state: Mapping[str, Tensor]
    inputs: tuple[tuple[Any, ...], Mapping[str, Any]]
    outputs: Wanted

    @in_own_surroundings
    def proved(self) -> RebasinReport:
        """The report, once the model was run with its units in both orders.

        Raises:
            EquivalenceError: it does not compute the same.
        """
        seconds = dict(self.report.seconds)
        permutation = self.report.certificate
        with timed(seconds, "verify"):
            equivalence = prove_state(
                self.model, self.state, permutation, self.inputs, self.outputs
            )
        return replace(self.report, seconds=seconds, equivalence=equivalence)


@in_own_surroundings
def unproved(
    model_b: nn.Module,
    ref: Reference,
    inputs: tuple[Any, Mapping[str, Any] | None],
    wanted: tuple[str, Mapping[str, Any], str],
    choices: Mapping[str, Any],
    seed: int = 0,
    *,
    ignore: Sequence[str] = (),
    untie: bool = False,
    stored: Mapping[str, Tensor] | None = None,
) -> Unproved:
    """The first part of `matched`: what comes behind it does without the reference.

    Args:
        model_b: see `match`.
        ref: see `match`.
        inputs: positional and keyword inputs, as they were passed.
        wanted: the method, its options, and the symmetries.
        choices: `state_buffers` and `outputs`, as they were passed.
        seed: see `match`.
        ignore: see `match`.
        untie: see `match`.
        stored: the weights by name of a model that has none itself, see
            `fxrebasin.models.emptied`; they are not copied.

    Raises:
        ArchitectureMismatchError: model and reference differ in names or shapes.
        InputError: model, reference, inputs, method or options cannot be used.
        CheckpointError: the file of the reference cannot be read.
    """
    method, options, symmetry = wanted
    how = (method, options, kinds_named(symmetry))
    request = Request(unwrap(model_b), ref, inputs, how, choices, ignore, stored)
    if untie:
        request.untie()
    check_count("seed", seed, 0)
    seconds: dict[str, float] = {}
    with timed(seconds, "analyze"):
        analysed = request.analyze()
    with timed(seconds, "match"):
        found = request.match(seed, analysed)
    report = report_of(request, analysed, found, seconds, None)
    given = (request.args, request.kwargs)
    return Unproved(report, request.model, request.state(), given, request.choices.outputs)
