"""The call `apply`, and whether a permutation still holds for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, overload

from torch import fx, nn

from fxrebasin.alignment import Alignment, Certificate
from fxrebasin.analysis import symmetry_of
from fxrebasin.calls.given import OnnxOrModule, is_onnx, refuse_buffers
from fxrebasin.choices import Choices, choices_for
from fxrebasin.errors import InputError
from fxrebasin.models.checks import check_usable, unwrap
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.passes.rewrite import rewrite
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.passes.trace.trace import trace
from fxrebasin.permutation import Permutation
from fxrebasin.proof import prove_graph
from fxrebasin.reliance import contradictions, refusal
from fxrebasin.running.outputs import Outputs
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.surroundings import in_own_surroundings

if TYPE_CHECKING:
    from onnx import ModelProto


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
        >>> import fxrebasin
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> permuted = fxrebasin.apply(net, fxrebasin.analyze(net).random(seed=0))
        >>> x = net[0].weight.new_ones(1, 2)
        >>> permuted(x).allclose(net(x), atol=1e-6)
        True
    """
    if not isinstance(model_b, nn.Module) and is_onnx(model_b):
        from fxrebasin.importers.onnx.permuting import applied

        refuse_buffers(state_buffers)
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
