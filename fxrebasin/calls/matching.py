"""The calls `match`, and `matched` for commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from torch import nn

from fxrebasin.alignment import Certificate
from fxrebasin.calls.given import OnnxOrModule, Reference, is_onnx, refuse_buffers, refuse_kinds
from fxrebasin.calls.reporting import report_of, timed
from fxrebasin.calls.request import Request
from fxrebasin.choices import kinds_named
from fxrebasin.models.checks import unwrap
from fxrebasin.options import check_count
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.permutation import Permutation
from fxrebasin.proof import prove_state
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.running.outputs import Outputs
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
    inputs = (example_inputs, example_kwargs)
    choices = {"state_buffers": state_buffers, "outputs": outputs}
    wanted = (method, options, kinds_named(symmetry))
    request = Request(unwrap(model_b), cast(Reference, ref), inputs, wanted, choices, ignore)
    if untie:
        request.untie()
    check_count("seed", seed, 0)
    seconds: dict[str, float] = {}
    with timed(seconds, "analyze"):
        analysed = request.analyze()
    with timed(seconds, "match"):
        found = request.match(seed, analysed)
    equivalence = None
    if verify:
        with timed(seconds, "verify"):
            equivalence = prove_state(
                request.model,
                named_state(request.model),
                found.certificate,
                (request.args, request.kwargs),
                request.choices.outputs,
            )
    return report_of(request, analysed, found, seconds, equivalence)
