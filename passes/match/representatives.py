"""Which module's output shows the units of a class, found by experiment.

The output of a module that owns a tensor with a class on one axis may have that class on an axis of
its own. Whether it does, and on which axis, shows when the model runs with permuted weights: the
output has to be permuted in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
# What torch.nn.utils.parametrize puts between a module and its tensors.
_PARAMETRIZATIONS = ".parametrizations."


@dataclass(frozen=True)
class Representative:
    """A module whose output has the units of an axis group along one dimension.

    Args:
        module: its name.
        group: of a tensor of that module.
        dim: of the output, counted from the end.
    """

    module: str
    group: AxisGroup
    dim: int

    def samples(self, output: torch.Tensor) -> torch.Tensor:
        """A copy of the output of shape `(samples, units)`, in float32 or float64.

        Args:
            output: of the module.
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
) -> list[Representative]:
    """Modules that show units, at most one axis of each.

    Args:
        runner: of the model.
        classes: all classes.
        layout: where their units are.
        state: of the model.
        batch: what to experiment with.
        ignored: names of tensors that say nothing of what their modules show.
    """
    looked_at = {name: groups for name, groups in layout.items() if name not in ignored}
    candidates = _candidates(runner.model, looked_at, state)
    permutations = _probes(classes, layout)
    plain = outputs_of(runner, list(candidates), state, batch)
    permuted = [
        outputs_of(runner, list(candidates), p.permute_state_dict(state), batch)
        for p in permutations
    ]
    found = []
    for module, groups in candidates.items():
        trials = [
            (before, after, p)
            for p, outputs in zip(permutations, permuted, strict=True)
            for before, after in zip(plain.get(module, []), outputs.get(module, []), strict=True)
        ]
        for group, total in groups:
            dim = _fitting_dim(group, total, trials)
            if dim is not None:
                found.append(Representative(module, group, dim))
                break
    return found


@contextmanager
def watching(
    model: nn.Module, names: Sequence[str], see: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Call `see` with the name of a module and its output whenever the output is a tensor.

    Args:
        model: with these modules.
        names: of modules.
        see: what to call; the output may be overwritten after it returns.
    """

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                see(name, output)

        return after

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _candidates(
    model: nn.Module, layout: Layout, state: State
) -> dict[str, list[tuple[AxisGroup, int]]]:
    """By module: the axis groups of its tensors, with their sizes."""
    modules = dict(model.named_modules())
    found: dict[str, list[tuple[AxisGroup, int]]] = {}
    for name, groups in layout.items():
        if name not in state:
            continue
        owner = name.split(_PARAMETRIZATIONS)[0] if _PARAMETRIZATIONS in name else name
        owner = owner.rpartition(".")[0] if owner == name else owner
        if owner in modules:
            shape = state[name].shape
            single = [(g, shape[g.axes[0]]) for g in groups if len(g.axes) == 1]
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
    runner: Runner, names: Sequence[str], state: State, batch: Batch
) -> Mapping[str, list[torch.Tensor]]:
    """Copies of what modules return, call by call.

    Args:
        runner: of the model.
        names: of modules.
        state: to run with.
        batch: of a loader.
    """
    outputs: dict[str, list[torch.Tensor]] = {}
    with watching(
        runner.model, names, lambda name, x: outputs.setdefault(name, []).append(x.clone())
    ):
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
        if all(shape[dim] == total for shape in shapes) and all(
            _moved_alike(before, after, dim, gather_index(group, total, p.arrays))
            for before, after, p in trials
        ):
            return dim
    return None


def _moved_alike(before: torch.Tensor, after: torch.Tensor, dim: int, source: Any) -> bool:
    if before.shape != after.shape:
        return False
    index = torch.from_numpy(source).to(before.device)
    expected = before.index_select(dim, index).float()
    spread = (expected - expected.mean(dim=dim, keepdim=True)).norm()
    return bool((after.float() - expected).norm() <= _TOLERANCE * spread)
