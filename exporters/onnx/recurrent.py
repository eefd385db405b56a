"""`nn.RNN` as nodes of a file: PyTorch's exporter writes LSTM and GRU only.

Weights go into the file as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.tensor_typing import TFloat

_ACTIVATIONS = {torch.ops.aten.rnn_tanh.input: "Tanh", torch.ops.aten.rnn_relu.input: "Relu"}
_op: Any = opset18


def translations() -> dict[Any, Callable[..., Any]]:
    """How operators are written that PyTorch's exporter does not know, by operator."""
    return {operator: _written_with(name) for operator, name in _ACTIVATIONS.items()}


def _written_with(activation: str) -> Callable[..., Any]:
    """`rnn_tanh` or `rnn_relu` as nodes; the types are how PyTorch's exporter learns of them."""

    def rnn(
        input: TFloat,
        hx: TFloat,
        params: Sequence[TFloat],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[TFloat, TFloat]:
        directions = 2 if bidirectional else 1
        _, _, size = _sizes(hx)
        options = {
            "direction": "bidirectional" if bidirectional else "forward",
            "activations": [activation] * directions,
            "hidden_size": size,
        }
        x = _op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        states = []
        for layer in range(num_layers):
            begin = _op.Slice(hx, [layer * directions], [(layer + 1) * directions], [0])
            weights = _of_layer(params, layer, directions, 4 if has_biases else 2)
            outputs, state = _op.RNN(x, *weights, initial_h=begin, **options)
            x = _op.Reshape(_op.Transpose(outputs, perm=[0, 2, 1, 3]), [0, 0, -1])
            states.append(state)
        last = _op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        return last, _joined(states)

    return rnn


def _sizes(value: Any) -> tuple[Any, ...]:
    """The shape of a value of three axes."""
    return tuple(value.shape)


def _of_layer(params: Sequence[Any], layer: int, directions: int, each: int) -> list[Any]:
    """`[directions, ...]`: weights of inputs, weights of states, and both biases in a row."""
    begins = [(layer * directions + direction) * each for direction in range(directions)]
    kinds = [[params[begin + at] for begin in begins] for at in range(each)]
    weights = [_joined([_op.Unsqueeze(one, [0]) for one in kind]) for kind in kinds[:2]]
    if each == 2:
        return weights
    biases = [_op.Concat(*both, axis=0) for both in zip(*kinds[2:], strict=True)]
    return [*weights, _joined([_op.Unsqueeze(one, [0]) for one in biases])]


def _joined(values: Sequence[Any]) -> Any:
    """Along the first axis."""
    return _op.Concat(*values, axis=0) if len(values) > 1 else values[0]
