"""Inputs and outputs of two files: by their names where these are the same, else by places."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fxrebasin.importers.onnx.loading import OnnxSource


def with_ports_of(source: OnnxSource, like: OnnxSource) -> OnnxSource:
    """A model that takes inputs and returns outputs in the order of another one.

    Exporters order them as they like; names that both files have mean the same. Where the names are
    not the same ones, nothing but places is left, and the model stays as it is.

    Args:
        source: the model.
        like: the other one.
    """
    own, other = source.parsed.graph, like.parsed.graph
    inputs = _ordered(own.inputs, other.inputs)
    outputs = _ordered(own.outputs, other.outputs)
    if (inputs, outputs) == (own.inputs, own.outputs):
        return source
    types = {name: source.parsed.types[name] for name in inputs}
    graph = replace(own, inputs=inputs, outputs=outputs)
    return replace(source, parsed=replace(source.parsed, graph=graph, types=types))


def _ordered(names: tuple[str, ...], like: Collection[str]) -> tuple[str, ...]:
    return tuple(like) if sorted(names) == sorted(like) else names
