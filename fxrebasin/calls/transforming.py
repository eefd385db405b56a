"""The call `transform`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from fxrebasin.calls.given import Reference
from fxrebasin.calls.reporting import report_of, timed, with_rounding
from fxrebasin.calls.request import Request
from fxrebasin.choices import kinds_named
from fxrebasin.errors import InputError
from fxrebasin.kinds import Kinds
from fxrebasin.options import check_count
from fxrebasin.passes.match.result import AlignmentResult
from fxrebasin.passes.rewrite import rewrite
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.proof import Proof, proof_of, prove_bits, prove_graph
from fxrebasin.running.outputs import Outputs
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.storage.digests import INPUTS_KEY


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
    """Re-base `model_b` onto `ref`: match, permute, and check that the function is unchanged.

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
    request = Request(model_b, ref, inputs, wanted, choices, ignore)
    if untie:
        request.untie()
    check_count("seed", seed, 0)
    seconds: dict[str, float] = {}
    with timed(seconds, "trace"):
        traced = request.trace()
    with timed(seconds, "analyze"):
        analysed = request.analyze()
    with timed(seconds, "match"):
        found = request.match(seed, analysed)
    with timed(seconds, "rewrite"):
        result = rewrite(
            request.model, found.certificate, request.args, request.kwargs, traced=traced
        )
    equivalence = None
    if proof is Proof.EXACT:
        with timed(seconds, "verify"):
            state = named_state(traced.graph_module)
            equivalence = prove_bits(state, named_state(result), found.certificate)
    elif proof is Proof.RUN:
        with timed(seconds, "verify"):
            equivalence = prove_graph(
                request.model,
                traced,
                result,
                found.certificate,
                (request.args, request.kwargs),
                request.choices.outputs,
            )
    report = report_of(request, analysed, found, seconds, equivalence, traced)
    if verify and isinstance(found, AlignmentResult) and not found.certificate.at_most_signed:
        report = with_rounding(report, request, result)
    result.meta["fxrebasin"] = report
    result.meta[INPUTS_KEY] = dict(request.digests)
    return result
