"""Names inside an ONNX graph: those that a reader expects, each used once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir


def names_in_file(state: Iterable[str], inputs: Sequence[str]) -> dict[str, str]:
    """What a file calls the tensors of a state: the same, unless an input has that name.

    Args:
        state: names of parameters and buffers.
        inputs: names of the inputs.

    Example:
        >>> names_in_file(["weight", "x"], inputs=["x"])
        {'weight': 'weight', 'x': 'x_1'}
    """
    names = list(state)
    used = {*names, *inputs}
    return {name: _fresh(name, used) if name in inputs else name for name in names}


def tidy(
    model: ir.Model,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    state: Mapping[str, str],
    axes: Mapping[str, str],
) -> None:
    """Give a graph made by torch's exporter its final names, in place.

    Args:
        model: the graph; no function bodies.
        inputs: names for its inputs, in order.
        outputs: names for its outputs, in order. One that an input or a weight has gets a suffix.
        state: names for initializers, by their present names; others keep theirs.
        axes: names for the symbols of sizes.

    Metadata goes, since it holds source lines and paths of the machine that made the file.
    """
    graph = model.graph
    weights = [value for name, value in graph.initializers.items() if name in state]
    others = [value for name, value in graph.initializers.items() if name not in state]
    wanted = zip(
        (*graph.inputs, *weights, *graph.outputs, *others),
        (
            *inputs,
            *(state[str(value.name)] for value in weights),
            *outputs,
            *(str(value.name) for value in others),
        ),
        strict=True,
    )
    _rename(graph, list(wanted))
    _name_axes(graph, axes)
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in _values(graph):
        value.metadata_props.clear()


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def _rename(graph: ir.Graph, wanted: Sequence[tuple[ir.Value, str]]) -> None:
    """Give values the names wanted for them; whatever else has such a name gets another."""
    final: dict[str, ir.Value] = {}
    for value, name in wanted:
        final[_fresh(name, final)] = value
    named = {id(value) for value in final.values()}
    others = [value for value in _values(graph) if id(value) not in named]
    used = {*final, *(str(value.name) for value in _values(graph))}
    for value in others:
        if value.name in final:
            value.name = _fresh(value.name, used)
            used.add(value.name)
    for value in final.values():  # two may swap names, so all give up theirs first
        value.name = _fresh("value", used)
        used.add(value.name)
    for name, value in final.items():
        value.name = name


def _fresh(name: str, used: Container[str]) -> str:
    candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
    return next(candidate for candidate in candidates if candidate not in used)


def _name_axes(graph: ir.Graph, axes: Mapping[str, str]) -> None:
    """Put names in the places of symbols; a size that is known but came as a symbol is a number."""
    symbols = re.compile(rf"\b({'|'.join(map(re.escape, axes))})\b") if axes else None
    for value in _values(graph):
        shape = value.shape or ir.Shape(())
        for axis, size in enumerate(shape):
            if not isinstance(size, ir.SymbolicDim) or size.value is None:
                continue
            if size.value.isdecimal():
                shape[axis] = int(size.value)
            elif symbols is not None:
                shape[axis] = symbols.sub(lambda found: axes[found.group()], size.value)
