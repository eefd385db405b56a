"""Recurrent layers, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.registry import UnsupportedError, operator

_Activation: TypeAlias = Callable[[Tensor], Tensor]

_Weights: TypeAlias = Tensor | Sequence[Sequence[Tensor]]
"""`[directions, rows, columns]`, or for each direction what the rows consist of."""

_PLAIN: Mapping[str, _Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": F.softplus,
}

_WITH_NUMBERS: Mapping[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "leakyrelu": (lambda x, a: F.leaky_relu(x, a), (0.01,)),
    "thresholdedrelu": (lambda x, a: torch.where(x >= a, x, torch.zeros_like(x)), (1.0,)),
    "elu": (lambda x, a: F.elu(x, a), (1.0,)),
    "hardsigmoid": (lambda x, a, b: torch.clamp(x * a + b, 0, 1), (0.2, 0.5)),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), (1.0, 1.0)),
    "affine": (lambda x, a, b: x * a + b, (1.0, 0.0)),
}
"""Functions with alpha, or alpha and beta, and the defaults of these."""


def _activations(
    names: Sequence[str], alphas: Sequence[float] | None, betas: Sequence[float] | None
) -> list[_Activation]:
    """The functions; each that takes alpha or beta takes the next of those that are given."""
    given = (list(alphas or ()), list(betas or ()))
    found = []
    for name in map(str.lower, names):
        if name in _PLAIN:
            found.append(_PLAIN[name])
        elif name in _WITH_NUMBERS:
            function, defaults = _WITH_NUMBERS[name]
            values = [
                rest.pop(0) if rest else default
                for rest, default in zip(given, defaults, strict=False)
            ]
            found.append(_with(function, values))
        else:
            raise UnsupportedError(f"{name} as the activation of a recurrent layer")
    return found


def _with(function: Callable[..., Tensor], values: Sequence[float]) -> _Activation:
    return lambda x: function(x, *values)


@dataclass(frozen=True, eq=False)
class _Cell:
    """The weights of one direction.

    Args:
        inputs: weights of the inputs, `[gates * hidden, input]`, as parts of these rows.
        hidden: weights of the state, `[gates * hidden, hidden]`, as parts of these rows.
        input_bias: `[gates * hidden]`.
        hidden_bias: `[gates * hidden]`.
        peepholes: `[3 * hidden]`, or none.
        functions: activations.
        clip: the bound of what these get.
        switch: `input_forget`, or `linear_before_reset`.
    """

    inputs: Sequence[Tensor]
    hidden: Sequence[Tensor]
    input_bias: Tensor | None
    hidden_bias: Tensor | None
    peepholes: Tensor | None
    functions: Sequence[_Activation]
    clip: float | None
    switch: bool

    def bound(self, value: Tensor) -> Tensor:
        """Between the negative and the positive bound."""
        return value if self.clip is None else value.clamp(-self.clip, self.clip)

    def of_input(self, value: Tensor) -> Tensor:
        """What the inputs contribute to all gates."""
        return _linear(value, self.inputs, self.input_bias)

    def of_state(self, value: Tensor) -> Tensor:
        """What the state contributes."""
        return _linear(value, self.hidden, self.hidden_bias)


def _linear(value: Tensor, rows: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    if len(rows) == 1:
        return F.linear(value, rows[0], bias)
    found = torch.cat([F.linear(value, part) for part in rows], -1)
    return found if bias is None else found + bias


_Step: TypeAlias = Callable[[_Cell, Tensor, list[Tensor]], list[Tensor]]


def _rnn_step(cell: _Cell, given: Tensor, state: list[Tensor]) -> list[Tensor]:
    return [cell.functions[0](cell.bound(given + cell.of_state(state[0])))]


def _gru_step(cell: _Cell, given: Tensor, state: list[Tensor]) -> list[Tensor]:
    gate, new = cell.functions
    hidden = state[0]
    z, r, h = given.chunk(3, -1)
    size = hidden.shape[-1]
    if cell.switch:
        of_z, of_r, of_h = cell.of_state(hidden).chunk(3, -1)
    else:
        gates = None if cell.hidden_bias is None else cell.hidden_bias.narrow(0, 0, 2 * size)
        weights = torch.cat(list(cell.hidden))
        both = F.linear(hidden, weights.narrow(0, 0, 2 * size), gates)
        of_z, of_r = both.chunk(2, -1)
    update, reset = gate(cell.bound(z + of_z)), gate(cell.bound(r + of_r))
    if cell.switch:
        inner = reset * of_h
    else:
        bias = None if cell.hidden_bias is None else cell.hidden_bias.narrow(0, 2 * size, size)
        inner = F.linear(reset * hidden, weights.narrow(0, 2 * size, size), bias)
    fresh = new(cell.bound(h + inner))
    return [(1 - update) * fresh + update * hidden]


def _lstm_step(cell: _Cell, given: Tensor, state: list[Tensor]) -> list[Tensor]:
    gate, new, out = cell.functions
    hidden, memory = state
    i, o, f, c = (given + cell.of_state(hidden)).chunk(4, -1)
    peep = [None] * 3 if cell.peepholes is None else cell.peepholes.chunk(3, -1)
    i = i if peep[0] is None else i + peep[0] * memory
    f = f if peep[2] is None else f + peep[2] * memory
    admitted = gate(cell.bound(i))
    kept = 1 - admitted if cell.switch else gate(cell.bound(f))
    memory = kept * memory + admitted * new(cell.bound(c))
    o = o if peep[1] is None else o + peep[1] * memory
    return [gate(cell.bound(o)) * out(memory), memory]


def _run(
    cell: _Cell,
    step: _Step,
    values: Tensor,
    state: list[Tensor],
    lengths: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, list[Tensor]]:
    """One direction: what each step gives, and the last state.

    Args:
        cell: weights.
        step: one step.
        values: `[steps, batch, input]`.
        state: each `[batch, hidden]`.
        lengths: of the sequences; a shorter one keeps its state, and gives zeros.
        backwards: from the last step to the first.
    """
    given = cell.of_input(values)
    found = []
    places = range(values.shape[0])
    for at in reversed(places) if backwards else places:
        fresh = step(cell, given[at], state)
        shown = fresh[0]
        if lengths is not None:
            within = (at < lengths).unsqueeze(-1)
            pairs = zip(fresh, state, strict=True)
            fresh = [torch.where(within, now, before) for now, before in pairs]
            shown = torch.where(within, shown, torch.zeros_like(shown))
        state = fresh
        found.append(shown)
    return torch.stack(found[::-1] if backwards else found), state


@dataclass(frozen=True)
class _Kind:
    """What tells the three layers apart.

    Args:
        step: one step of it.
        gates: for which there are weights.
        activations: of one direction, by default.
        states: that it hands on.
    """

    step: _Step
    gates: int
    activations: tuple[str, ...]
    states: int


_RNN = _Kind(_rnn_step, 1, ("Tanh",), 1)
_GRU = _Kind(_gru_step, 3, ("Sigmoid", "Tanh"), 1)
_LSTM = _Kind(_lstm_step, 4, ("Sigmoid", "Tanh", "Tanh"), 2)

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True, eq=False)
class _Layer:
    """The tensors and attributes of a node."""

    weights: _Weights
    recurrence: _Weights
    bias: Tensor | None
    lengths: Tensor | None
    initial: Sequence[Tensor | None]
    peepholes: Tensor | None
    direction: str
    layout: int
    clip: float | None
    activations: list[str] | None
    alphas: list[float] | None
    betas: list[float] | None
    switch: bool


def _rows_of(weights: _Weights, at: int) -> Sequence[Tensor]:
    """The parts of the rows of one direction."""
    return [weights[at]] if isinstance(weights, Tensor) else weights[at]


def _layer(kind: _Kind, values: Tensor, layer: _Layer) -> tuple[Tensor, ...]:
    directions = _DIRECTIONS[layer.direction]
    names = layer.activations or list(kind.activations) * len(directions)
    functions = _activations(names, layer.alphas, layer.betas)
    values = values.transpose(0, 1) if layer.layout else values
    size = _rows_of(layer.recurrence, 0)[0].shape[-1]
    shown, last = [], []
    for at, backwards in enumerate(directions):
        of_input, of_state = (None, None) if layer.bias is None else layer.bias[at].chunk(2)
        cell = _Cell(
            _rows_of(layer.weights, at),
            _rows_of(layer.recurrence, at),
            of_input,
            of_state,
            None if layer.peepholes is None else layer.peepholes[at],
            functions[at * len(kind.activations) : (at + 1) * len(kind.activations)],
            layer.clip,
            layer.switch,
        )
        state = [
            values.new_zeros(values.shape[1], size)
            if item is None
            else item.select(1 if layer.layout else 0, at)
            for item in layer.initial
        ]
        steps, state = _run(cell, kind.step, values, state, layer.lengths, backwards)
        shown.append(steps)
        last.append(state)
    if layer.layout:
        states = [torch.stack(items, 1) for items in zip(*last, strict=True)]
        return (torch.stack(shown, 2).transpose(0, 1), *states)
    states = [torch.stack(items) for items in zip(*last, strict=True)]
    return (torch.stack(shown, 1), *states)


@operator("RNN")
def rnn(
    values: Tensor,
    weights: _Weights,
    recurrence: _Weights,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    layout: int = 0,
    clip: float | None = None,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
) -> tuple[Tensor, ...]:
    """One gate."""
    numbers = (activations, activation_alpha, activation_beta, False)
    rest = (lengths, [hidden], None, direction, layout, clip, *numbers)
    return _layer(_RNN, values, _Layer(weights, recurrence, bias, *rest))


@operator("GRU")
def gru(
    values: Tensor,
    weights: _Weights,
    recurrence: _Weights,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    layout: int = 0,
    clip: float | None = None,
    linear_before_reset: int = 0,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
) -> tuple[Tensor, ...]:
    """Gates in the order update, reset, new."""
    numbers = (activations, activation_alpha, activation_beta, bool(linear_before_reset))
    rest = (lengths, [hidden], None, direction, layout, clip, *numbers)
    return _layer(_GRU, values, _Layer(weights, recurrence, bias, *rest))


@operator("LSTM")
def lstm(
    values: Tensor,
    weights: _Weights,
    recurrence: _Weights,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    memory: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    layout: int = 0,
    clip: float | None = None,
    input_forget: int = 0,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
) -> tuple[Tensor, ...]:
    """Gates in the order input, output, forget, new."""
    numbers = (activations, activation_alpha, activation_beta, bool(input_forget))
    rest = (lengths, [hidden, memory], peepholes, direction, layout, clip, *numbers)
    return _layer(_LSTM, values, _Layer(weights, recurrence, bias, *rest))
