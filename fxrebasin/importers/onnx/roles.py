"""Which stored tensors are state that may be permuted, and which are constants."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from fxrebasin.importers.onnx.graph import Graph, Parsed, Step
from fxrebasin.importers.onnx.sharing import read_inside
from fxrebasin.importers.onnx.tensors import bits_of

_SCAN_WITHOUT_LENGTHS = 9
_STATE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_AS_GOOD_AS_INFINITE = 1e38
_FIRST = 64
"""So many elements are looked at before all are."""


def state_of(parsed: Parsed) -> tuple[str, ...]:
    """Names of the tensors that are weights, in the order of the file.

    A tensor with a fraction is state, unless it has one element, or holds one number throughout
    (to permute it would change nothing), or is a mask of one number and infinities, or what it
    holds is read as numbers: sizes, places, bounds, and what these are computed from. Tensors that
    cannot be written back are constants.

    Args:
        parsed: the model.
    """
    tensors = parsed.tensors
    return tuple(
        name
        for name in weights_of(parsed)
        if tensors[name].numel() > 1
        and not is_uniform(tensors[name])
        and not is_mask(tensors[name])
    )


def weights_of(parsed: Parsed) -> tuple[str, ...]:
    """Names of all tensors with a fraction that can be written and are not read as numbers.

    Args:
        parsed: the model.
    """
    read = read_as_numbers(parsed.graph)
    return tuple(
        name
        for name, tensor in parsed.tensors.items()
        if tensor.dtype in _STATE and name in parsed.stored and name not in read
    )


def is_uniform(tensor: Tensor) -> bool:
    """Whether all elements have the same bits.

    Example:
        >>> is_uniform(torch.zeros(3)), is_uniform(torch.tensor([0.0, -0.0]))
        (True, False)
    """
    bits = bits_of(tensor).reshape(-1)
    return all(bool((part == bits[0]).all()) for part in (bits[:_FIRST], bits))


def is_mask(tensor: Tensor) -> bool:
    """Whether elements are infinite, and all others equal: what is added to scores of attention.

    The largest numbers of a type stand for infinity, as some models have it.

    Example:
        >>> is_mask(torch.tensor([0.0, -torch.inf])), is_mask(torch.tensor([0.0, 1.0, torch.inf]))
        (True, False)
    """
    least = min(torch.finfo(tensor.dtype).max, _AS_GOOD_AS_INFINITE)
    if all(abs(float(end)) < least for end in tensor.aminmax()):
        return False
    infinite = tensor.abs() >= least
    return bool(infinite.any()) and len(tensor[~infinite].unique()) <= 1


class _Scope:
    """The tensors of a graph, and what its names are computed from."""

    def __init__(self, graph: Graph, around: _Scope | None) -> None:
        self.graph, self.around = graph, around
        self.maker: dict[str, Step] = {
            name: step for step in graph.steps for name in step.outputs if name
        }

    @cached_property
    def from_data(self) -> set[str]:
        """Names of what is computed from what the model is given."""
        found = set(self.graph.inputs) if self.around is None else set(self.around.from_data)
        for step in self.graph.steps:
            inside = (
                name for body in step.graphs.values() for name in read_inside(body, as_numbers=True)
            )
            if found.intersection((*step.used, *inside)):
                found.update(name for name in step.outputs if name)
        return found

    def owner(self, name: str) -> _Scope | None:
        """The scope in which a name is made."""
        scope: _Scope | None = self
        while scope is not None:
            graph = scope.graph
            if name in scope.maker or name in graph.tensors or name in graph.inputs:
                return scope
            scope = scope.around
        return None


def read_as_numbers(graph: Graph) -> set[str]:
    """Names of the tensors whose values are read as sizes, places or bounds, or go into what is.

    What is computed from inputs is known to nobody before they are there, and so need not be what
    it is computed with: a condition that asks how sure a network is says nothing of its weights.

    Args:
        graph: of a model.
    """
    pending = list(_numbers(_Scope(graph, None)))
    seen: set[tuple[int, str]] = set()
    found: set[str] = set()
    while pending:
        scope, name = pending.pop()
        owner = scope.owner(name)
        if owner is None or (id(owner.graph), name) in seen or name in owner.from_data:
            continue
        seen.add((id(owner.graph), name))
        if name in owner.graph.tensors:
            found.add(owner.graph.tensors[name])
        elif name in owner.maker:
            step = owner.maker[name]
            pending += [(owner, item) for item in step.used]
            bodies = (_Scope(body, owner) for body in step.graphs.values())
            pending += [(body, item) for body in bodies for item in body.graph.outputs]
        elif owner.around is not None:
            pending += _given_to_body(owner, owner.around, name)
    return found


def _given_to_body(body: _Scope, around: _Scope, name: str) -> Iterator[tuple[_Scope, str]]:
    """What an input of a body may be: inputs of its node, or what the body returned before."""
    node = next(step for step in around.graph.steps if body.graph in step.graphs.values())
    at = body.graph.inputs.index(name)
    outside: tuple[str, ...] = node.inputs
    inside: tuple[str, ...] = ()
    if node.kind == "Loop":  # counts, asks whether to go on, and carries values
        outside = node.inputs[at : at + 1] if at else ()
        inside = body.graph.outputs[at - 1 : at] if at else ()
    elif node.kind == "Scan" and node.site.opset >= _SCAN_WITHOUT_LENGTHS:
        carried = len(node.inputs) - int(node.attributes["num_scan_inputs"])
        outside = node.inputs[at : at + 1]
        inside = body.graph.outputs[at : at + 1] if at < carried else ()
    yield from ((around, item) for item in outside if item)
    yield from ((body, item) for item in inside if item)


def _numbers(scope: _Scope) -> Iterator[tuple[_Scope, str]]:
    """Names that operators read as numbers, with the scope in which they do."""
    for step in scope.graph.steps:
        reads = step.operator.reads if step.operator is not None else ()
        yield from ((scope, step.inputs[at]) for at in reads if at < len(step.inputs))
        for body in step.graphs.values():
            yield from _numbers(_Scope(body, scope))
