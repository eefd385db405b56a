"""The digest of an opened checkpoint: that of the state which it is read as, a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fxrebasin.storage.digests import Described, digest_of
from fxrebasin.streaming.making import ranges
from fxrebasin.streaming.opening import Opened


def opened_digest(opened: Opened, like: nn.Module | None = None) -> str:
    """What `fxrebasin.storage.digests.state_digest` gives for the tensors of a checkpoint.

    Args:
        opened: the checkpoint.
        like: whose dtypes they are read in; as they are stored when left out.
    """
    own = {} if like is None else {name: t.dtype for name, t in like.state_dict().items()}

    def parts(name: str) -> Iterator[torch.Tensor]:
        for rows in ranges(opened.stored[name]):
            yield opened.read(name, rows).to(own.get(name, opened.stored[name].dtype))

    return digest_of(
        Described(name, own.get(name, stored.dtype), stored.shape, parts(name))
        for name, stored in sorted(opened.stored.items())
    )
