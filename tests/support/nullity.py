"""How many directions of a model's parameters change no output, at random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from fxrebasin.running.outputs import counted


def nullity(net: nn.Module, inputs: Sequence[Tensor], batch: int = 20) -> int:
    """How many directions of the parameters change no output, at least to first order.

    Args:
        net: in double precision and eval mode.
        inputs: positional, more of them than there are parameters.
        batch: how many of them are run at once.
    """
    state = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def outputs(given: dict[str, Tensor], x: tuple[Tensor, ...]) -> Tensor:
        found = counted(functional_call(net, given, x))
        return torch.cat([item.flatten() for item in found.values()])

    parts = zip(*(item.split(batch) for item in inputs), strict=True)
    rows = []
    for part in parts:
        found = jacrev(outputs)(state, part)
        rows.append(torch.cat([item.flatten(1) for item in found.values()], 1))
    matrix = torch.cat(rows)
    if len(matrix) <= matrix.shape[1]:
        raise ValueError(f"{len(matrix)} outputs for {matrix.shape[1]} parameters")
    sizes = matrix.norm(dim=0)
    matrix = matrix / torch.where(sizes > 1e-10 * sizes.max(), sizes, sizes.max())
    triangle = torch.linalg.qr(matrix, mode="r").R
    found = torch.linalg.svdvals(triangle)
    return matrix.shape[1] - int((found > 1e-9 * found[0]).sum())
