"""Tensors whose numbers no node reads: further names of weights that the graph reads by other ones.

Exporters keep a tied weight under each of its names, and the graph reads it by some of them. Who
loads the weights by name would find the two apart, or mixed, if only those that are read changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fxrebasin.importers.onnx.graph import Graph, Parsed
from fxrebasin.importers.onnx.partner import Partner
from fxrebasin.importers.onnx.sharing import read_inside
from fxrebasin.importers.onnx.tensors import same_bits


def unread(parsed: Parsed) -> dict[str, tuple[str, ...]]:
    """Stored tensors that no node reads, each with those that nodes read and that it is a copy of.

    Of a tensor that several nodes read, and that may come to be several, the one that keeps its
    name is such.

    Args:
        parsed: the model.
    """
    read = _read_somewhere(parsed.graph) & parsed.stored.keys()
    tensors = parsed.tensors
    whole = sorted(read - parsed.uses.keys())
    return {
        name: tuple(other for other in whole if same_bits(tensors[other], tensors[name]))
        for name in sorted(parsed.stored.keys() - read)
    }


def unread_copies(parsed: Parsed, moved: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors that no node reads and that are copies of one that moves, with the name of that.

    Those that are copies of several, which move apart, are of no one of these.

    Args:
        parsed: the model.
        moved: new content, by name.
    """
    found: dict[str, str] = {}
    for name, alike in unread(parsed).items():
        moving = [other for other in alike if other in moved]
        if name in moved or not moving:
            continue
        content = moved[moving[0]]
        after = (moved[other] if other in moved else parsed.tensors[other] for other in alike)
        if all(same_bits(content, tensor) for tensor in after):
            found[name] = moving[0]
    return found


def counterpart(
    name: str, copies: tuple[str, ...], other: Parsed, partners: Mapping[str, Partner], like: Tensor
) -> Tensor:
    """What another file holds for a tensor that no node of the first one reads.

    It is the partner of what it is a copy of, if it is one in the other file as well or that has
    no such name; otherwise what the other file has under this name, if that has the same shape.

    Args:
        name: of the tensor.
        copies: tensors of the first file that it is a copy of.
        other: the other file.
        partners: its tensors, by the names of the first one's.
        like: the tensor; the answer where the other file has nothing for it.
    """
    theirs = other.tensors.get(name)
    pairs = [partners[copied] for copied in copies if copied in partners]
    if theirs is not None:
        pairs = [pair for pair in pairs if same_bits(other.tensors[pair.name], theirs)]
    values = [pair.of(other.tensors) for pair in pairs]
    if values and all(same_bits(values[0], value) for value in values):
        return values[0]
    if theirs is None or theirs.shape != like.shape or not theirs.is_floating_point():
        return like
    return theirs


def _read_somewhere(graph: Graph) -> set[str]:
    """Names of stored tensors that a node, or the outside, may read by a name within its graph."""
    graphs = [graph, *(body for _, step in graph.all_steps() for body in step.graphs.values())]
    read = set(read_inside(graph, as_numbers=True))
    return {name for one in graphs for local, name in one.tensors.items() if local in read}
