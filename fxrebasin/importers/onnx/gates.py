"""Weights of recurrent layers that a graph puts together of rows: handed on as these.

Exporters that keep PyTorch's parameters slice them into gates, and join these in the order that
ONNX has. In what was joined, an analysis has to tell every element from every other one, which
takes a hundred times the memory of the weights; in a slice it need not, since a slice is a view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from fxrebasin.importers.onnx.graph import Graph, Step
from fxrebasin.importers.onnx.sharing import read_inside

_LAYERS = frozenset({"LSTM", "GRU", "RNN"})
_OF_RNN = frozenset({"Tanh", "Relu"})
_WEIGHTS = (1, 2)  # inputs of a layer: `[directions, rows, columns]`

Rows = tuple[tuple[str, ...], ...]
"""Names of what the rows of a weight consist of, for each direction."""


def in_gates(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> Graph:
    """A graph in which recurrent layers read rows of weights before these are joined.

    Bodies stay as they are, and so do layers with functions of their own, which onnxruntime may
    have to compute, and those that do not read one of their gates, whose rows are found to move as
    they like only in what was joined.

    Args:
        graph: of a model.
        tensors: of the model, by their names in it.
    """
    joins = _Joins(graph, tensors)
    steps = [joins.opened(step) for step in graph.steps]
    if all(new is old for new, old in zip(steps, graph.steps, strict=True)):
        return graph
    kept = _needed(steps, graph.outputs, joins.met)
    return replace(graph, steps=tuple(_with_rows_kept(kept)))


class _Joins:
    """What a graph joins along the first axis.

    Attributes:
        met: first outputs of the nodes that were passed.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, torch.Tensor]) -> None:
        self._maker = {step.outputs[0]: step for step in graph.steps}
        self._numbers = {
            local: tensors[name].tolist()
            for local, name in graph.tensors.items()
            if tensors[name].numel() == 1 and tensors[name].dtype is torch.int64
        }
        self.met: set[str] = set()

    def opened(self, step: Step) -> Step:
        """The step, with the rows of its weights if they are joined."""
        if step.kind not in _LAYERS or step.domain or not _as_usual(step):
            return step
        rows: dict[int, Rows] = {}
        for at in _WEIGHTS:
            parts = tuple(self._direction(name) for name in self._joined(step.inputs[at]))
            if all(parts) and (len(parts) > 1 or len(parts[0]) > 1):
                rows[at] = parts
        return replace(step, rows=rows) if rows else step

    def _joined(self, name: str) -> Iterator[str]:
        """Names of what a value is joined of along its first axis; itself if it is not."""
        step = self._maker.get(name)
        if step is None or (step.domain, step.kind) != ("", "Concat") or step.attributes["axis"]:
            yield name
            return
        self.met.add(name)
        for part in step.inputs:
            yield from self._joined(part)

    def _direction(self, name: str) -> tuple[str, ...]:
        """Names of the rows of one direction; none if that is not known."""
        step = self._maker.get(name)
        if step is None or (step.domain, step.kind) != ("", "Unsqueeze"):
            return ()
        axes = step.attributes.get("axes") or self._numbers.get((*step.inputs, "")[1])
        if axes not in ([0], 0):
            return ()
        self.met.add(name)
        return tuple(self._joined(step.inputs[0]))


def _as_usual(step: Step) -> bool:
    """Whether a layer is computed here in any case, and reads all of its gates."""
    if step.kind == "RNN":
        return set(step.attributes.get("activations", ())) <= _OF_RNN
    return "activations" not in step.attributes and not step.attributes.get("input_forget")


def _needed(steps: Sequence[Step], outputs: Sequence[str], passed: set[str]) -> list[Step]:
    """The steps, without those that were passed and that nothing else reads."""
    reads = Counter(outputs)
    for step in steps:
        reads.update(_read(step))
    kept = []
    for step in reversed(steps):
        if step.outputs[0] in passed and not reads[step.outputs[0]]:
            reads.subtract(step.inputs)
        else:
            kept.append(step)
    return kept[::-1]


def _read(step: Step) -> Iterator[str]:
    yield from (name for at, name in enumerate(step.inputs) if at not in step.rows)
    yield from (name for parts in step.rows.values() for names in parts for name in names)
    for body in step.graphs.values():
        yield from read_inside(body)


def _with_rows_kept(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps, none of which lets go of rows that a later one reads."""
    rows = {name for step in steps for parts in step.rows.values() for n in parts for name in n}
    for step in steps:
        done = tuple(name for name in step.done if name not in rows)
        yield step if done == step.done else replace(step, done=done)
