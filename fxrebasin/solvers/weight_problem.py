"""The matching problem of two sets of weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from fxrebasin.layout import Layout, PermutationClass


@dataclass(frozen=True)
class WeightProblem:
    """Find the permutation under which the inner product of two sets of weights is largest.

    Args:
        classes: the permutation classes.
        layout: where their units are.
        state_a: tensors of the reference.
        state_b: tensors of the model that is permuted.
        names: of the tensors that are compared.
        free: names of the classes that may move.
    """

    classes: tuple[PermutationClass, ...]
    layout: Layout
    state_a: Mapping[str, torch.Tensor]
    state_b: Mapping[str, torch.Tensor]
    names: Collection[str]
    free: Collection[str]
