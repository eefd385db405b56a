"""Recurrent layers as one operator each, for any number of steps.

torch.export takes LSTM, GRU and RNN apart, step by step, to learn the shapes of what they return.
That fixes the number of steps and takes long, and ONNX has operators for the whole layers. PyTorch
writes those of LSTM and GRU; that of RNN, whose weights go into the file as they are, is written
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.tensor_typing import TFloat
from torch._decomp import decomposition_table

_KEY = torch._C.DispatchKey.CompositeImplicitAutograd
_ACTIVATIONS = {torch.ops.aten.rnn_tanh.input: "Tanh", torch.ops.aten.rnn_relu.input: "Relu"}
_op: Any = opset18


@contextmanager
def whole_recurrent_layers() -> Iterator[None]:
    """Let tracers know the shapes of LSTM, GRU and RNN without taking them apart."""
    with ExitStack() as stack:
        stack.enter_context(_known(torch.ops.aten.lstm.input, _lstm))
        for operator in (torch.ops.aten.gru.input, *_ACTIVATIONS):
            stack.enter_context(_known(operator, _of_one_state))
        yield


def translations() -> dict[Any, Callable[..., Any]]:
    """How operators are written that PyTorch's exporter does not know, by operator."""
    return {operator: _written_with(name) for operator, name in _ACTIVATIONS.items()}


@contextmanager
def _known(operator: Any, shapes: Callable[..., Any]) -> Iterator[None]:
    """Let fake tensors go through `shapes` instead of the operator."""
    kernels = [(decomposition_table, operator), (operator.py_kernels, _KEY)]
    before = [table.get(key) for table, key in kernels]
    for table, key in kernels:
        table[key] = shapes
    operator._dispatch_cache.clear()
    try:
        yield
    finally:
        for (table, key), kernel in zip(kernels, before, strict=True):
            table.pop(key, None)
            if kernel is not None:
                table[key] = kernel
        operator._dispatch_cache.clear()


def _lstm(
    x: torch.Tensor, hx: Sequence[torch.Tensor], *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _states(x, hx[0], rest), torch.empty_like(hx[0]), torch.empty_like(hx[1])


def _of_one_state(
    x: torch.Tensor, hx: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return _states(x, hx, rest), torch.empty_like(hx)


def _states(x: torch.Tensor, hx: torch.Tensor, rest: Sequence[Any]) -> torch.Tensor:
    """As many numbers per step as a state has, twice if the layer is `rest[-2]`: bidirectional."""
    return x.new_empty((*x.shape[:-1], hx.shape[-1] * (2 if rest[-2] else 1)))


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
