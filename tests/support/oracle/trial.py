"""A sample as a module that can be analysed, and the test whether the analysis is sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fxrebasin.analysis import symmetry_of
from fxrebasin.indexing import identity_arrays
from fxrebasin.permutation import Permutation
from fxrebasin.symmetry import Symmetry
from tests.support.oracle.sample import Operand, Sample

TOLERANCE = 1e-10
ELEMENTS_DRAWN = 2

State = Mapping[str, Tensor]


class Trial(nn.Module):
    """The module that a sample is analysed as.

    Its state: the operands by name, `out0`, `out1`, ... that weight the outputs, and for each of
    these a `..._gain` that meets it before it is used, so that the analysis has a reason to tell
    apart its elements. `plain` leaves those of the operands out: they are then used as they are.
    """

    def __init__(self, sample: Sample, plain: bool = False) -> None:
        super().__init__()
        self.sample = sample
        self.plain = plain
        generator = torch.Generator().manual_seed(0)
        operands = {name: item.draw(generator) for name, item in sample.operands.items()}
        with torch.no_grad():
            outputs = sample.real(operands)
        # On meta tensors some outputs are not empty that really are: they are of no use to anyone.
        self.used = [index for index, output in enumerate(outputs) if output.numel()]
        self.weights = {
            f"out{number}": Operand(tuple(outputs[index].shape), low=0.5)
            for number, index in enumerate(self.used)
        }
        for name, tensor in self.draw(generator).items():
            role = sample.operands[name].role if name in sample.operands else "parameter"
            if role == "parameter":
                setattr(self, name, nn.Parameter(tensor, requires_grad=False))
            elif role == "buffer":
                self.register_buffer(name, tensor)
        self.given = [name for name, item in sample.operands.items() if item.role == "input"]

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A random state, model inputs included."""
        found = {}
        for name, item in {**self.sample.operands, **self.weights}.items():
            found[name] = item.draw(generator)
            if self.has_gain(name):
                found[f"{name}_gain"] = item.draw(generator)
        return found

    def has_gain(self, name: str) -> bool:
        if name in self.weights:
            return True
        return not self.plain and self.sample.operands[name].role == "parameter"

    def met(self, state: State, name: str) -> Tensor:
        """A tensor of the state after it met its gain, within the range that it is drawn from."""
        if not self.has_gain(name):
            return state[name]
        if state[name].dtype.is_complex:
            return state[name] * state[f"{name}_gain"]
        return torch.maximum(state[name], state[f"{name}_gain"])

    def forward(self, *inputs: Tensor) -> Tensor:
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        state |= dict(zip(self.given, inputs, strict=True))
        operands = {name: self.met(state, name) for name in self.sample.operands}
        outputs = self.sample.analysed(operands)
        total = torch.zeros((), dtype=torch.float64)
        for name, index in zip(self.weights, self.used, strict=True):
            for part in as_floats(outputs[index]):
                total = total + (part * self.met(state, name)).sum()
        return total

    def outputs(self, state: State) -> list[Tensor]:
        """What the real operator computes, with finite numbers in place of others."""
        operands = {name: self.met(state, name) for name in self.sample.operands}
        outputs = self.sample.real(operands)
        return [finite(outputs[index]) for index in self.used]

    def result(self, state: State) -> tuple[float, float]:
        """The result of the real operators, and the size of what it sums up."""
        total = size = 0.0
        for name, output in zip(self.weights, self.outputs(state), strict=True):
            for part in as_floats(output):
                weighted = (part * self.met(state, name)).detach()
                total, size = total + float(weighted.sum()), size + float(weighted.abs().sum())
        return total, size


def as_floats(tensor: Tensor) -> list[Tensor]:
    if tensor.dtype.is_complex:
        return [tensor.abs(), tensor.angle()]
    return [tensor if tensor.dtype == torch.float64 else tensor.to(torch.float64)]


def finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, nan=3.7, posinf=5.3, neginf=-4.1)


def analysed(trial: Trial) -> Symmetry:
    """The symmetry of a trial."""
    generator = torch.Generator().manual_seed(3)
    state = trial.draw(generator)
    return symmetry_of(trial, [state[name] for name in trial.given], {})


def incorrect(trial: Trial, symmetry: Symmetry) -> list[str]:
    """Elements of the group that change what the real operators compute."""
    generator = torch.Generator().manual_seed(1)
    found = []
    with torch.no_grad():
        for element in _elements(symmetry):
            state = trial.draw(generator)
            before, size = trial.result(state)
            after, _ = trial.result(element.permute_state_dict(state))
            if not abs(before - after) <= TOLERANCE * max(size, 1e-300):
                moved = [name for name, array in element.arrays.items() if _moves(array)]
                found.append(f"changed by a permutation of {', '.join(moved)}")
    return found


def _elements(symmetry: Symmetry) -> Iterator[Permutation]:
    """Random ones, and for each class one that moves nothing else and hence drowns in nothing."""
    for seed in range(ELEMENTS_DRAWN if symmetry.classes else 0):
        yield symmetry.random(seed)
    everything = symmetry.random(ELEMENTS_DRAWN).arrays
    for c in symmetry.classes if len(symmetry.classes) > 1 else ():
        arrays = {**identity_arrays(symmetry.classes), c.name: everything[c.name]}
        yield Permutation(symmetry.classes, arrays, symmetry.layout)


def _moves(array: np.ndarray) -> bool:
    return bool((array != np.arange(array.shape[-1])).any())


def described(symmetry: Symmetry) -> str:
    """The classes in a few words, for messages."""
    parts: Sequence[str] = [
        f"{c.name}: {c.size}! x {c.count} on {', '.join(f'{n}[{a}]' for n, a in c.axes)}"
        for c in symmetry.classes
    ]
    return "; ".join(parts) or "no classes"
