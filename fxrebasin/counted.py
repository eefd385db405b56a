"""What of a tensor counts when two models are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxrebasin.layout import AxisGroup, Layout


def counted(tensor: torch.Tensor, groups: Sequence[AxisGroup], first_row: int = 0) -> torch.Tensor:
    """A tensor with zeros where it does not count, which adds nothing to products and distances.

    Taps of a filter that saw only padding were not trained: what they are says nothing about the
    units that they belong to.

    Args:
        tensor: of the shape that the layout was made for, or some of its rows; left as it is.
        groups: of its axes.
        first_row: where these rows begin.

    Returns:
        The tensor itself if all of it counts.
    """
    slabs = [slab for group in groups for slab in group.uncounted]
    if not slabs:
        return tensor
    found = tensor.detach().clone()
    for slab in slabs:
        begin = first_row if slab.axis == 0 else 0
        inside = [at - begin for at in slab.positions if 0 <= at - begin < found.shape[slab.axis]]
        found.index_fill_(
            slab.axis, torch.tensor(inside, dtype=torch.int64, device=found.device), 0
        )
    return found


def counted_state(state: Mapping[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
    """The same for all tensors of a model.

    Args:
        state: by name.
        layout: by name.
    """
    return {name: counted(tensor, layout.get(name, ())) for name, tensor in state.items()}
