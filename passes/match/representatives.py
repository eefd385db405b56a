"""Which module's output, or input, shows the units of a class, found by experiment.

The output of a module that owns a tensor with a class on one axis may have that class on an axis of
its own, and so may what the module reads. Whether it does, and on which axis, shows when the model
runs with permuted weights: the output, or input, has to be permuted in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn

from fxrebasin.indexing import gather_index, identity_arrays
from fxrebasin.layout import AxisGroup, Layout, PermutationClass
from fxrebasin.permutation import Permutation
from fxrebasin.running.batches import Batch, Runner, State

# Of the spread of an output: rounding is far below it, even in half precision; wrong units are not.
_TOLERANCE = 0.1
# What is equal may differ by so many units in the last place.
_ROUNDING = 16
# What torch.nn.utils.parametrize puts between a module and its tensors.
_PARAMETRIZATIONS = ".parametrizations."


class Side(Enum):
    """What of a module is looked at."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"


@dataclass(frozen=True)
class Representative:
    """A module whose output, or input, has the units of an axis group along one dimension.

    Args:
        module: its name.
        group: of a tensor of that module.
        dim: of the output or input, counted from the end.
        state: the name of that tensor.
    """

    module: str
    group: AxisGroup
    dim: int
    state: str

    def samples(self, output: torch.Tensor) -> torch.Tensor:
        """A copy of the output of shape `(samples, units)`, in float32 or float64.

        Args:
            output: of the module, or its input.
        """
        wide = output.dtype if output.dtype == torch.float64 else torch.float32
        units = output.shape[self.dim]
        return output.detach().movedim(self.dim, -1).reshape(-1, units).to(wide, copy=True)


def find_representatives(
    runner: Runner,
    classes: Sequence[PermutationClass],
    layout: Layout,
    state: State,
    batch: Batch,
    ignored: Collection[str] = (),
    side: Side = Side.OUTPUTS,
) -> list[Representative]:
    """Modules that show units, at most one axis of each.

    Args:
        runner: of the model.
        classes: all classes.
        layout: where their units are.
        state: of the model.
        batch: what to experiment with.
        ignored: names of tensors that say nothing of what their modules show.
        side: of the modules.
    """
    looked_at = {name: groups for name, groups in layout.items() if name not in ignored}
    candidates = _candidates(runner.model, looked_at, state)
    permutations = _probes(classes, layout)
    plain = outputs_of(runner, list(candidates), state, batch, side)
    permuted = [
        outputs_of(runner, list(candidates), p.permute_state_dict(state), batch, side)
        for p in permutations
    ]
    found = []
    for module, groups in candidates.items():
        trials = [
            (before, after, p)
            for p, outputs in zip(permutations, permuted, strict=True)
            for before, after in zip(plain.get(module, []), outputs.get(module, []), strict=True)
        ]
        for state_name, group, total in groups:
            dim = _fitting_dim(group, total, trials)
            if dim is not None:
                found.append(Representative(module, group, dim, state_name))
                break
    return found


@contextmanager
def watching(
    model: nn.Module,
    names: Sequence[str],
    see: Callable[[str, torch.Tensor], None],
    side: Side = Side.OUTPUTS,
) -> Iterator[None]:
    """Call `see` with the name of a module and its output whenever the output is a tensor.

    Args:
        model: with these modules.
        names: of modules.
        see: what to call; the output may be overwritten after it returns.
        side: of the modules; of inputs, only one that is given by position is looked at.
    """

    def look(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            see(name, value)

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: look(name, output)

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: look(name, inputs[0] if len(inputs) == 1 else None)

    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(after(name))
        if side is Side.OUTPUTS
        else modules[name].register_forward_pre_hook(before(name))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _candidates(
    model: nn.Module, layout: Layout, state: State
) -> dict[str, list[tuple[str, AxisGroup, int]]]:
    """By module: its tensors, their axis groups, and the sizes of these."""
    modules = dict(model.named_modules())
    found: dict[str, list[tuple[str, AxisGroup, int]]] = {}
    for name, groups in layout.items():
        if name not in state:
            continue
        owner = name.split(_PARAMETRIZATIONS)[0] if _PARAMETRIZATIONS in name else name
        owner = owner.rpartition(".")[0] if owner == name else owner
        if owner in modules:
            shape = state[name].shape
            single = [(name, g, shape[g.axes[0]]) for g in groups if len(g.axes) == 1]
            found.setdefault(owner, []).extend(single)
    return found


def _probes(classes: Sequence[PermutationClass], layout: Layout) -> list[Permutation]:
    """An element that moves every unit, and a random one."""
    still = identity_arrays(classes)
    rolled = {name: np.roll(array, 1, axis=-1) for name, array in still.items()}
    return [
        Permutation(tuple(classes), rolled, layout),
        Permutation.random(classes, layout, seed=0),
    ]


def outputs_of(
    runner: Runner,
    names: Sequence[str],
    state: State,
    batch: Batch,
    side: Side = Side.OUTPUTS,
) -> Mapping[str, list[torch.Tensor]]:
    """Copies of what modules return, or of what they are given, call by call.

    Args:
        runner: of the model.
        names: of modules.
        state: to run with.
        batch: of a loader.
        side: of the modules.
    """
    outputs: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, value: torch.Tensor) -> None:
        outputs.setdefault(name, []).append(value.clone())

    with watching(runner.model, names, keep, side):
        # The state has tied tensors under each of their names; the model takes them once.
        runner.call(runner.own(state), batch)
    return outputs


def _fitting_dim(
    group: AxisGroup, total: int, trials: Sequence[tuple[torch.Tensor, torch.Tensor, Permutation]]
) -> int | None:
    """The dimension, counted from the end, along which all outputs move as the group does."""
    if not trials:
        return None
    shapes = [before.shape for before, _, _ in trials]
    least = min(len(shape) for shape in shapes)
    for dim in range(-1, -least - 1, -1):
        if (
            all(shape[dim] == total for shape in shapes)
            and all(
                _moved_alike(before, after, dim, gather_index(group, total, p.arrays))
                for before, after, p in trials
            )
            and any(_varies(before, dim) for before, _, _ in trials)
        ):
            return dim
    return None


def _varies(output: torch.Tensor, dim: int) -> bool:
    """Whether values along a dimension differ: equal rows of a batch fit any permutation."""
    wide = output.double()
    spread = (wide - wide.mean(dim=dim, keepdim=True)).norm()
    return bool(spread > _ROUNDING * torch.finfo(output.dtype).eps * wide.norm())


def _moved_alike(before: torch.Tensor, after: torch.Tensor, dim: int, source: Any) -> bool:
    if before.shape != after.shape:
        return False
    index = torch.from_numpy(source).to(before.device)
    expected = before.index_select(dim, index).float()
    spread = (expected - expected.mean(dim=dim, keepdim=True)).norm()
    return bool((after.float() - expected).norm() <= _TOLERANCE * spread)
