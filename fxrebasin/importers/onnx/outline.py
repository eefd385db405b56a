"""What a graph multiplies, looks up and scales: coarser than what its nodes are.

One exporter writes a normalisation, an activation or attention as one node, another one as ten, in
any order. Here a graph is only its products, its tables and what else reads weights; of what is
between them it only counts where it comes from. So spellings that nobody has listed are alike. That
two graphs have one outline says which of their tensors may go together, and no more than that: see
`fxrebasin.importers.onnx.joining`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fxrebasin.importers.onnx.graph import Graph, Parsed
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
    """
    return _Walk(source, loose).through(source.parsed.graph)


class _Walk:
    """Goes through the graph of a model, and through bodies where their nodes are."""

    def __init__(self, source: OnnxSource, loose: bool) -> None:
        self._parsed, self._loose = source.parsed, loose
        self._weights = set(weights_of(source.parsed))
        self._folds = folds_of(source.parsed, set(source.state))

    def through(
        self, graph: Graph, around: Mapping[str, Origin] | None = None, depth: int = 0
    ) -> tuple[Origin, ...]:
        """Where each output of a graph comes from.

        Args:
            graph: the model's own, or a body.
            around: where values come from that are made outside.
            depth: in so many others the graph is.
        """
        values: dict[str, Origin] = {"": (), **(around or {})}
        values.update((local, self._stored(name)) for local, name in graph.tensors.items())
        values.update((name, (Entry(at, depth),)) for at, name in enumerate(graph.inputs))
        for step in graph.steps:
            reads = step.operator.reads if step.operator is not None else ()
            given = [() if at in reads else values[name] for at, name in enumerate(step.inputs)]
            bodies = [
                self.through(step.graphs[name], values, depth + 1) for name in sorted(step.graphs)
            ]
            made = origins_of(step, given, bodies, self._loose)
            values.update(zip(step.outputs, made, strict=False))
            values.update((name, made[-1]) for name in step.outputs[len(made) :])
            fold = None if depth else self._folds.get(step.outputs[0])
            if fold is not None:
                tail = _with_fold(made[0], values[fold.layer], fold, self._parsed)
                values[step.outputs[0]] = tail
        return tuple(values[name] for name in graph.outputs)

    def _stored(self, name: str) -> Origin:
        tensor = self._parsed.tensors[name]
        if name not in self._weights or tensor.numel() <= 1 or is_mask(tensor):
            return ()
        return (Leaf(name, tuple(tensor.shape), uniform=is_uniform(tensor)),)


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
