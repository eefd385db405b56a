"""What is measured of networks: losses, lines between them, and how well B was rebased."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fxrebasin
from benchmarks.experiments.data.source import Batches, Data, Source
from benchmarks.experiments.training import loss_of
from fxrebasin.merge import BarrierCurve, barrier, interpolate, recalibrate, repair
from fxrebasin.permutation import Permutation

_BATCH = 512
NO_BARRIER = 0.01
"""Nats; below this the text speaks of no barrier."""

Prepare = Callable[[nn.Module], nn.Module]


@torch.no_grad()
def score(model: nn.Module, source: Source) -> tuple[float, float]:
    """Mean cross-entropy (nats, summed up in float64) and accuracy (0 to 1), in eval mode.

    Args:
        model: left in eval mode.
        source: of the items.
    """
    model.eval()
    total, right, count = 0.0, 0, 0
    for inputs, targets in Batches(source, _BATCH):
        outputs = model(inputs)
        total += float(loss_of(outputs.double(), targets)) * targets.numel()
        right += int((outputs.argmax(-1) == targets).sum())
        count += targets.numel()
    return total / count, right / count


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network has statistics to recalibrate."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def walk(
    a: nn.Module, b: nn.Module, data: Data, *, steps: int, calibration: Batches | None = None
) -> BarrierCurve:
    """Losses and accuracies on the held-out items along the straight line from A to B.

    Args:
        a: at t = 0.
        b: at t = 1.
        data: whose held-out items are used.
        steps: number of models on the line, both ends included.
        calibration: recompute the BatchNorm statistics of every model on these batches.
    """
    prepare: Prepare | None = None
    if calibration is not None:
        prepare = partial(recalibrate, loader=calibration)
    return barrier(a, b, lambda model: score(model, data.test), steps=steps, prepare=prepare)


def walk_repaired(
    a: nn.Module, b: nn.Module, data: Data, *, steps: int, calibration: Batches
) -> BarrierCurve:
    """The same line with REPAIR (arXiv:2211.08403) for every model between the ends.

    Args:
        a: at t = 0.
        b: at t = 1, aligned with A.
        data: whose held-out items are used.
        steps: number of models on the line, both ends included.
        calibration: batches that statistics are taken on.
    """
    positions = [k / (steps - 1) for k in range(steps)]
    found = []
    for t, model in zip(positions, interpolate(a, b, steps=steps), strict=True):
        inner = 0 < t < 1
        found.append(score(repair(model, a, b, calibration, t=t) if inner else model, data.test))
    losses, accuracies = zip(*found, strict=True)
    return BarrierCurve(tuple(positions), tuple(losses), tuple(accuracies))


@dataclass(frozen=True)
class Rebased:
    """B in the units of A.

    Args:
        model: of B's own class.
        permutation: that was applied.
        seconds: of the processor, that matching took.
        error: relative error in float64 against B.
        loss_change: of the held-out loss in nats, float32.
    """

    model: nn.Module
    permutation: Permutation
    seconds: float
    error: float
    loss_change: float


def rebase(
    b: nn.Module, a: nn.Module, data: Data, *, method: str = "weight", **options: Any
) -> Rebased:
    """Match B to A, permute a copy of B, and prove that it computes what B computes.

    Args:
        b: left as it is.
        a: the reference.
        data: whose held-out items serve as example.
        method: as `fxrebasin.match` knows it.
        **options: of the method.

    Raises:
        EquivalenceError: the copy computes something else.
    """
    example = example_of(data)
    start = time.process_time()
    permutation = fxrebasin.match(b, a, example, method=method, **options)
    seconds = time.process_time() - start
    model = permuted(b, permutation.permute_state_dict(b.state_dict()))
    report = fxrebasin.verify(b, model, example)
    report.raise_if_failed()
    change = abs(score(model, data.test)[0] - score(b, data.test)[0])
    return Rebased(model, permutation, seconds, report.max_rel, change)


def example_of(data: Data, count: int = 32) -> Tensor:
    """Some held-out inputs.

    Args:
        data: to take them from.
        count: how many.
    """
    return data.test.batch(torch.arange(min(count, len(data.test))))[0]


def permuted(b: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of B with other values.

    Args:
        b: left as it is.
        state: of the copy.
    """
    model = copy.deepcopy(b)
    model.load_state_dict(dict(state))
    return model.eval()
