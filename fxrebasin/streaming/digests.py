"""Digests of the tensors of an opened checkpoint, as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from fxrebasin.storage.digests import Described, tensor_digest
from fxrebasin.streaming.making import ranges
from fxrebasin.streaming.opening import Opened


def tensor_digests(
    opened: Opened, names: Iterable[str], like: nn.Module | None = None
) -> dict[str, str]:
    """What `fxrebasin.storage.digests.tensor_digest` gives for tensors of a checkpoint.

    Args:
        opened: the checkpoint.
        names: of the tensors.
        like: whose dtypes they are read in; as they are stored when left out.
    """
    own = {} if like is None else {name: t.dtype for name, t in like.state_dict().items()}

    def described(name: str) -> Described:
        stored = opened.stored[name]
        dtype = own.get(name, stored.dtype)
        return Described(name, dtype, stored.shape, parts(name, dtype))

    def parts(name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        for rows in ranges(opened.stored[name]):
            yield opened.read(name, rows).to(dtype)

    return {name: tensor_digest(described(name)) for name in names}
