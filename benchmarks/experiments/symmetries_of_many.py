"""Three networks in one basis: the barrier of their mean, and of the lines between them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fxrebasin
from benchmarks.experiments.data.source import Batches
from benchmarks.experiments.lines import mean_of
from benchmarks.experiments.measure import example_of, permuted, score, walk
from benchmarks.experiments.symmetry_rows import UNTOUCHED, Kept, Row
from benchmarks.experiments.symmetry_subjects import Trained
from benchmarks.experiments.training import loss_of
from fxrebasin.alignment import applied

_SEEDS = (0, 1, 2)
_POINTS = 11
_UNALIGNED = ""


def joint_rows(
    network: str, trained: Trained, steps: Sequence[int], seen: int, kept: Kept
) -> Iterator[Row]:
    """The mean of three networks, and their lines, after each way of aligning them.

    Args:
        network: in words.
        trained: its networks.
        steps: of what learns.
        seen: items that methods which look at data see, but for those that learn.
        kept: where rows are.
    """
    learned = [(f"learned, {count} steps (all)", "learned", count) for count in steps]
    closed = [(f"{method} (all)", method, 0) for method in ("merge_many", "activation")]
    for way, method, count in [(UNTOUCHED, _UNALIGNED, 0), *closed, *learned]:
        names = network, "-".join(map(str, _SEEDS)), way
        row = kept.row(names, partial(_row, names, trained, (method, count, seen)))
        if row is not None:
            yield row


def _row(names: tuple[str, str, str], trained: Trained, way: tuple[str, int, int]) -> Row:
    models = [trained.model(seed) for seed in _SEEDS]
    start = time.process_time()
    aligned = _aligned(models, trained, *way) if way[0] else models
    seconds = time.process_time() - start
    states = [dict(model.state_dict()) for model in aligned]
    merged = permuted(models[0], _mean(states))
    data = trained.data
    loss, accuracy = score(merged, data.test)
    barrier = loss - mean_of([score(model, data.test)[0] for model in models])
    lines = [
        walk(one, two, data, steps=_POINTS).barrier
        for one, two in itertools.combinations(aligned, 2)
    ]
    note = ", ".join(f"{line:.3f}" for line in lines)
    return Row(*names, max(barrier, 0.0), loss, accuracy, seconds, note=note)


def _aligned(
    models: Sequence[nn.Module], trained: Trained, method: str, steps: int, seen: int
) -> list[nn.Module]:
    study, data = trained.study, trained.data
    options: dict[str, Any] = {}
    if method == "activation":
        options = {"loader": Batches(data.train, study.batch, seen // study.batch)}
    if steps:
        loader = study.batches(data.train, steps + 8)
        options = {"loader": loader, "loss": loss_of, "steps": steps, "rate": study.rate}
    found = fxrebasin.align_many(
        models,
        method,
        example_inputs=example_of(data),
        symmetry="all",
        **options,
    )
    return [
        permuted(model, applied(certificate, model.state_dict()))
        for certificate, model in zip(found, models, strict=True)
    ]


def _mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(own)
        for name, own in states[0].items()
    }
