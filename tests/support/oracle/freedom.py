"""Freedoms found by brute force, and whether a group has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.indexing import identity_arrays
from fxrebasin.layout import AxisGroup
from fxrebasin.permutation import Permutation
from fxrebasin.symmetry import Symmetry
from tests.support.oracle.trial import State, Trial, as_floats

DRAWS = 6
"""Draws of the operands for which an exchange must change nothing to count as a freedom."""


@dataclass(frozen=True)
class Swap:
    """Two neighbours along an axis exchanged, everywhere or where another axis is at a position."""

    handle: str
    shape: tuple[int, ...]
    axis: int
    where: tuple[int, int] | None = None

    def __str__(self) -> str:
        condition = "" if self.where is None else f" where [{self.where[0]}]={self.where[1]}"
        return f"{self.handle}[{self.axis}]{condition}"


Swaps = tuple[Swap, ...]


@lru_cache(maxsize=4096)
def _index(swap: Swap, at: int) -> Tensor:
    """Where each element comes from when positions `at` and `at + 1` are exchanged."""
    index = torch.arange(int(np.prod(swap.shape))).view(swap.shape)
    order = list(range(swap.shape[swap.axis]))
    order[at], order[at + 1] = order[at + 1], order[at]
    swapped = index.index_select(swap.axis, torch.tensor(order))
    if swap.where is None:
        return swapped.reshape(-1)
    partly = index.clone()
    partly.narrow(*swap.where, 1).copy_(swapped.narrow(*swap.where, 1))
    return partly.reshape(-1)


def missing(trial: Trial, symmetry: Symmetry) -> dict[str, str]:
    """Exchanges that change nothing and that the group does not have.

    Returns:
        The axes exchanged, in words, and the first positions found to be exchangeable.
    """
    search = _Search(trial)
    found: dict[str, str] = {}
    with torch.no_grad():
        for at, swaps in search.freedoms():
            text = ", ".join(str(swap) for swap in swaps)
            if text not in found and not contains(
                symmetry, search.draws[0], _moves(trial, swaps, at)
            ):
                found[text] = f"{at} and {at + 1}"
    return found


class _Search:
    """Tries all exchanges of operands, and looks for those of the outputs that answer them."""

    def __init__(self, trial: Trial) -> None:
        generator = torch.Generator().manual_seed(2)
        self.trial = trial
        self.draws = [trial.draw(generator) for _ in range(DRAWS)]
        self.before = [self._outputs(state) for state in self.draws]
        self.operands = self._operands()
        self.outputs = {
            name: trial.sample.split.get(name, item.shape) for name, item in trial.weights.items()
        }

    def _outputs(self, state: State) -> list[list[np.ndarray]]:
        outputs = self.trial.outputs(state)
        return [[part.numpy() for part in as_floats(output)] for output in outputs]

    def _operands(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the operands that may move and that the result depends on."""
        found = {}
        for name, item in self.trial.sample.operands.items():
            if item.role != "input" and self._matters(name):
                found[name] = self.trial.sample.split.get(name, item.shape)
        return found

    def _matters(self, name: str) -> bool:
        for state, other, before in zip(self.draws, self.draws[1:], self.before, strict=False):
            changed = {**state, name: other[name]}
            if self.trial.has_gain(name):
                changed[f"{name}_gain"] = other[f"{name}_gain"]
            try:
                after = self._outputs(changed)
            except RuntimeError:  # ranges that depend on each other
                return True
            if not all(_close(one, two) for one, two in zip(before, after, strict=True)):
                return True
        return False

    def freedoms(self) -> Iterator[tuple[int, Swaps]]:
        sizes = {n for shape in [*self.operands.values(), *self.outputs.values()] for n in shape}
        for size in sorted(sizes - {0, 1}):
            for condition in [None, *((length, 0) for length in sorted(sizes - {0, 1}))]:
                for swaps in _choices(self.operands, size, condition):
                    for at in range(size - 1 if condition is None else 1):
                        answers = self._answers(swaps, size, at, condition)
                        yield from ((at, (*swaps, *answer)) for answer in answers)

    def _answers(
        self, swaps: Swaps, size: int, at: int, condition: tuple[int, int] | None
    ) -> list[Swaps]:
        """Exchanges of the outputs that amount to the same as those of the operands."""
        options = {
            name: _choices_of(name, shape, size, condition) for name, shape in self.outputs.items()
        }
        moves = _moves(self.trial, swaps, at)
        for state, before in zip(self.draws, self.before, strict=True):
            after = self._outputs(_moved(state, moves))
            for (name, choices), old, new in zip(options.items(), before, after, strict=True):
                options[name] = [c for c in choices if _close(new, _exchanged(old, c, at))]
                if not options[name]:
                    return []
        found = [sum(answer, ()) for answer in itertools.product(*options.values())]
        if condition is not None:
            found = [a for a in found if any(swap.where for swap in (*swaps, *a))]
        return [answer for answer in found if (*swaps, *answer)]


def _exchanged(old: Sequence[np.ndarray], swaps: Swaps, at: int) -> list[np.ndarray]:
    result = list(old)
    for swap in swaps:
        index = _index(swap, at).numpy()
        result = [part.reshape(-1)[index].reshape(part.shape) for part in result]
    return result


def _close(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    return all(
        a.shape == b.shape and bool((np.abs(a - b) <= 1e-9 * (1 + np.abs(a))).all())
        for a, b in zip(first, second, strict=True)
    )


def _choices(
    shapes: Mapping[str, tuple[int, ...]], size: int, condition: tuple[int, int] | None
) -> Iterator[Swaps]:
    options = [_choices_of(name, shape, size, condition) for name, shape in shapes.items()]
    for chosen in itertools.product(*options):
        yield sum(chosen, ())


def _choices_of(
    name: str, shape: tuple[int, ...], size: int, condition: tuple[int, int] | None
) -> list[Swaps]:
    """Nothing, some axes of a size, or one of them where another axis is at a position."""
    axes = [axis for axis, length in enumerate(shape) if length == size]
    found: list[Swaps] = [
        tuple(Swap(name, shape, axis) for axis in chosen)
        for count in range(len(axes) + 1)
        for chosen in itertools.combinations(axes, count)
    ]
    if condition is None:
        return found
    length, position = condition
    others = [axis for axis, n in enumerate(shape) if n == length]
    return found + [
        (Swap(name, shape, axis, (other, position)),)
        for axis in axes
        for other in others
        if other != axis
    ]


def _moves(trial: Trial, swaps: Swaps, at: int) -> dict[str, Tensor]:
    """By state tensor, where each element comes from."""
    moves: dict[str, Tensor] = {}
    for swap in swaps:
        index = _index(swap, at)
        names = [swap.handle] + [f"{swap.handle}_gain"] * trial.has_gain(swap.handle)
        for name in names:
            moves[name] = moves[name][index] if name in moves else index
    return moves


def _moved(state: State, moves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.reshape(-1)[moves[name]].view(tensor.shape) if name in moves else tensor
        for name, tensor in state.items()
    }


def contains(symmetry: Symmetry, state: State, moves: Mapping[str, Tensor]) -> bool:
    """Whether the group has the element that moves the elements of tensors like this."""
    arrays = identity_arrays(symmetry.classes)
    for name, groups in symmetry.layout.items():
        if name in moves:
            shape, index = tuple(state[name].shape), moves[name].numpy()
            if not all(_decoded(group, shape, index, arrays) for group in groups):
                return False
    try:
        element = Permutation(symmetry.classes, arrays, symmetry.layout)
    except InputError:
        return False
    for name, tensor in state.items():
        index = torch.arange(tensor.numel())
        came = element.permute_tensor(name, index.view(tensor.shape)).reshape(-1)
        if not torch.equal(came, moves.get(name, index)):
            return False
    return True


def _decoded(
    group: AxisGroup, shape: tuple[int, ...], index: np.ndarray, arrays: dict[str, np.ndarray]
) -> bool:
    """Read the classes' permutations off what happens to the positions of a group's pieces."""
    sizes = [shape[axis] for axis in group.axes]
    for piece in group.pieces:
        coordinates = np.indices(piece.positions.shape).reshape(piece.positions.ndim, -1)
        place = np.zeros((len(shape), piece.positions.size), dtype=np.int64)
        place[list(group.axes)] = np.unravel_index(piece.positions.reshape(-1), sizes)
        source = np.array(np.unravel_index(index[np.ravel_multi_index(tuple(place), shape)], shape))
        flat = np.ravel_multi_index(tuple(source[list(group.axes)]), sizes)
        slots = np.full((int(np.prod(sizes)), piece.positions.ndim), -1)
        slots[piece.positions.reshape(-1)] = coordinates.T
        found = slots[flat]
        if (found < 0).any():
            return False
        for number, slot in enumerate(piece.slots):
            if slot.class_name is not None:
                copy = tuple(coordinates[outer] for outer in slot.within)
                arrays[slot.class_name][(*copy, coordinates[number])] = found[:, number]
    return True
