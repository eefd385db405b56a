"""What a graph multiplies, looks up and scales: coarser than what its nodes are.

One exporter writes a normalisation, an activation or attention as one node, another one as ten, in
any order. Here a graph is only its products, its tables and what else reads weights; of what is
between them it only counts where it comes from. So spellings that nobody has listed are alike. That
two graphs have one outline says which of their tensors may go together, and no more than that: see
`fxrebasin.importers.onnx.joining`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.graph import Parsed
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.origins import (
    BIASED,
    LINEAR,
    SCALE,
    Anchor,
    Entry,
    InAdvance,
    Leaf,
    Origin,
)
from fxrebasin.importers.onnx.outline_rules import origins_of
from fxrebasin.importers.onnx.roles import is_mask, is_uniform, weights_of
from fxrebasin.importers.onnx.tails import Fold, folds_of

_LAYERS = BIASED - {SCALE}


def outline_of(source: OnnxSource, loose: bool = False) -> tuple[Origin, ...]:
    """Where each output of a graph comes from.

    Args:
        source: the model.
        loose: whether only layers and products tell where something comes from: not inputs, and
            not tables, which others may have computed in advance.

    Raises:
        ArchitectureMismatchError: it has branches or loops, of which there is no outline.
    """
    parsed = source.parsed
    weights = set(weights_of(parsed))
    values: dict[str, Origin] = {"": ()}
    for local, name in parsed.graph.tensors.items():
        tensor = parsed.tensors[name]
        if name in weights and tensor.numel() > 1 and not is_mask(tensor):
            leaf = Leaf(name, tuple(tensor.shape), uniform=is_uniform(tensor))
            values[local] = (leaf,)
        else:
            values[local] = ()
    values.update((name, (Entry(at),)) for at, name in enumerate(parsed.graph.inputs))
    folds = folds_of(parsed, set(source.state))
    for step in parsed.graph.steps:
        if step.graphs:
            raise ArchitectureMismatchError(
                f"{step.kind} {step.name!r} has bodies, which are compared node by node only"
            )
        reads = step.operator.reads if step.operator is not None else ()
        given = [() if at in reads else values[name] for at, name in enumerate(step.inputs)]
        made = origins_of(step, given, loose)
        values.update(zip(step.outputs, made, strict=False))
        values.update((name, made[-1]) for name in step.outputs[len(made) :])
        fold = folds.get(step.outputs[0])
        if fold is not None:
            values[step.outputs[0]] = _with_fold(made[0], values[fold.layer], fold, parsed)
    return tuple(values[name] for name in parsed.graph.outputs)


def _with_fold(tail: Origin, layer: Origin, fold: Fold, parsed: Parsed) -> Origin:
    """Where a tail comes from, which may be one layer in other files."""
    end, owner = (origin[0] if len(origin) == 1 else None for origin in (tail, layer))
    if not (isinstance(end, Anchor) and isinstance(owner, Anchor)) or end.kind != SCALE:
        return tail
    weight = owner.weights[0] if len(owner.weights) == 2 else None
    if owner.kind not in _LAYERS or weight is None:
        return tail
    bias = None
    if fold.bias is not None and fold.held is not None:
        bias = Leaf(fold.held, tuple(parsed.tensors[fold.held].shape))
        bias = replace(bias, computed=InAdvance(value=fold.bias))
    factor = _per_channel(owner.kind, fold.factor, weight.shape)
    whole = replace(weight, computed=InAdvance(factor=factor), uniform=False)
    found = replace(owner, label=end.label, weights=(whole, bias), fold=fold)
    return (replace(end, folded=found),)


def _per_channel(kind: str, factor: Tensor, shape: Sequence[int]) -> Tensor:
    """A number for each channel, as a weight of this shape is multiplied by them."""
    if kind == LINEAR:
        return factor
    ones = [1] * (len(shape) - 2)
    if kind == "Conv":
        return factor.reshape(-1, 1, *ones)
    groups = factor.reshape(-1, shape[1])  # of a ConvTranspose
    return groups.repeat_interleave(shape[0] // len(groups), 0).reshape(*shape[:2], *ones)
