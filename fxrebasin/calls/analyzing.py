"""The call `analyze`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fxrebasin.analysis import symmetry_of
from fxrebasin.calls.given import OnnxOrModule, is_onnx, refuse_buffers, refuse_kinds
from fxrebasin.choices import choices_for, kinds_named
from fxrebasin.models.checks import check_usable, unwrap
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.running.outputs import Outputs
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.symmetry import Symmetry


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
    if not isinstance(model, nn.Module) and is_onnx(model):
        from fxrebasin.importers.onnx.finding import symmetry_of_file

        refuse_kinds(kinds)
        refuse_buffers(state_buffers)
        given = example_kwargs if example_inputs is None else example_inputs
        return symmetry_of_file(model, given, outputs)
    module = own_structure(unwrap(model))
    check_usable(module, needs_weights=False)
    choices = choices_for(module, state_buffers=state_buffers, outputs=outputs)
    args, kwargs = normalise_inputs(module, example_inputs, example_kwargs, check=False)
    return symmetry_of(module, args, kwargs, choices, kinds)
