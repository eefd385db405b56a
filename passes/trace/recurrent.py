"""Recurrent layers as one operator each, for any number of steps.

torch.export takes LSTM, GRU and RNN apart, step by step, to learn the shapes of what they return.
That fixes the number of steps and takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._decomp import decomposition_table

_KEY = torch._C.DispatchKey.CompositeImplicitAutograd
_ATEN = torch.ops.aten
_ONE_STATE = (_ATEN.gru.input, _ATEN.rnn_tanh.input, _ATEN.rnn_relu.input)


@contextmanager
def whole_recurrent_layers() -> Iterator[None]:
    """Let tracers know the shapes of LSTM, GRU and RNN without taking them apart."""
    with ExitStack() as stack:
        stack.enter_context(_known(torch.ops.aten.lstm.input, _lstm))
        for operator in _ONE_STATE:
            stack.enter_context(_known(operator, _of_one_state))
        yield


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
