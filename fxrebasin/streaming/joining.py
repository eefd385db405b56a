"""The processes that a command was started with, as `torchrun` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from fxrebasin.ranks import ALONE, Ranks, Together, lost
from fxrebasin.streaming.started import are_several

_PATIENCE = timedelta(hours=2)
"""How long one waits for the others; that a process ended is noticed at once."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that this one was started with; it alone if it was not started with others.

    Raises:
        RankLostError: they do not find each other.
    """
    if not are_several():
        yield ALONE
        return
    with lost():
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Together(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
