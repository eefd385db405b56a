"""How a checkpoint is to be read, and what was read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias

import torch

Move: TypeAlias = Callable[[str, torch.Tensor], torch.Tensor]
"""Puts a tensor into another order of units: the name in the model and the tensor go in. The
`permute_tensor` of a permutation is one."""


@dataclass(frozen=True)
class Reading:
    """How a checkpoint is to be read.

    Args:
        key: which copy of the weights, where there are several: a path with dots through the
            dictionaries of the file, as `"state_dict_ema"`, or on to the beginning of names, as
            `"state_dict.teacher"`. Found by rule when left out.
        prefix: taken off the names in the file; found when left out.
        ignore_extra: tensors that the model does not have are no error.
        ignore: names or patterns (`"fc.*"`) of tensors of the model that may be missing, or of
            another shape.
        trust_remote_code: of folders of Hugging Face models.

    Example:
        >>> Reading(key="state_dict_ema", ignore=("fc.*",)).prefix is None
        True
    """

    key: str | None = None
    prefix: str | None = None
    ignore_extra: bool = False
    ignore: tuple[str, ...] = ()
    trust_remote_code: bool = False


class Kind(Enum):
    """What holds a checkpoint."""

    FILE = "file"
    INDEX = "index of shards"
    MODEL_FOLDER = "folder of a model"
    WEIGHTS_FOLDER = "folder of weights"
    DISTRIBUTED = "folder of torch.distributed.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Weights that were read for a model, and what is needed to write them back.

    Args:
        path: what was read.
        kind: of what was read.
        state: tensors under the names of the model's state dict and in their order, as stored:
            bfloat16 stays bfloat16. What is ignored may be missing.
        extra: names in the file of tensors beside them that the model does not have.
        notes: which copy was taken, which prefix, what is beside it; a sentence each, for reports.
        left_out: what is not written back, because it would not fit other weights (optimisers);
            a sentence each.
        source: of the reader that made this.
        stays_behind: what is not written back either where nothing brings it along: other copies
            of the weights; a sentence.
    """

    path: Path
    kind: Kind
    state: Mapping[str, torch.Tensor]
    extra: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    source: object = None
    stays_behind: tuple[str, ...] = ()
