"""Recurrent layers and cells: hidden units of every layer and direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.structures.table import SEQUENCE, f, structure


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: type[nn.RNNBase], out: int = 5, **options: object) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.cells = kind(4, 5, batch_first=True, **options)
        self.leave = nn.Linear(out, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.cells(self.enter(x))[0])


@structure(f(4, 5), SEQUENCE)
def rnn() -> nn.Module:
    return Recurrent(nn.RNN)


@structure(f(4, 5), SEQUENCE)
def lstm() -> nn.Module:
    return Recurrent(nn.LSTM)


@structure(f(4, 5), SEQUENCE)
def gru() -> nn.Module:
    return Recurrent(nn.GRU)


@structure(f(4, 5, 5), SEQUENCE)
def lstm_of_two_layers() -> nn.Module:
    return Recurrent(nn.LSTM, num_layers=2)


@structure(f(4, 5, 5), SEQUENCE)
def gru_in_both_directions() -> nn.Module:
    return Recurrent(nn.GRU, out=10, bidirectional=True)


@structure(f(4, 5, 5, 5, 5), SEQUENCE)
def lstm_of_two_layers_in_both_directions() -> nn.Module:
    return Recurrent(nn.LSTM, out=10, num_layers=2, bidirectional=True, bias=False)


@structure(f(4, 5, 3), SEQUENCE)
def lstm_with_projections() -> nn.Module:
    return Recurrent(nn.LSTM, out=3, proj_size=3)


class Cells(nn.Module):
    """A cell that is applied step by step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.enter, self.cell, self.leave = nn.Linear(3, 4), kind(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.enter(x).unbind(1):
            state = self.cell(step, state)
        return self.leave(state[0] if isinstance(state, tuple) else state)


@structure(f(4, 5), SEQUENCE)
def rnn_cell() -> nn.Module:
    return Cells(nn.RNNCell)


@structure(f(4, 5), SEQUENCE)
def lstm_cell() -> nn.Module:
    return Cells(nn.LSTMCell)


@structure(f(4, 5), SEQUENCE)
def gru_cell() -> nn.Module:
    return Cells(nn.GRUCell)


class FinalStates(nn.Module):
    """The last hidden and cell states, not the outputs, are what the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.leave = nn.LSTM(3, 5, 2), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, cell) = self.cells(x.transpose(0, 1))
        return self.leave(torch.cat([*hidden, *cell], dim=-1))


@structure(f(5, 5), SEQUENCE)
def final_states_of_an_lstm() -> nn.Module:
    return FinalStates()


class LinearRecurrence(nn.Module):
    """A diagonal state space: every channel has a decay of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 2)
        self.decay = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        state = torch.zeros_like(h[:, 0])
        found = []
        for step in range(h.shape[1]):
            state = self.decay.sigmoid() * state + h[:, step]
            found.append(state)
        return self.leave(torch.stack(found, dim=1))


@structure(f(6), SEQUENCE)
def state_space() -> nn.Module:
    return LinearRecurrence()
