"""Outputs that show little of a model: other weights give the same, or nothing is equal to them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxrebasin.exporters.verify.input_sets import InputSet, same_start
from fxrebasin.exporters.verify.runs import MadeWhenAsked, Subject, Tensors, in_float64
from fxrebasin.running.apart import is_inexact


def weak_outputs(sets: Sequence[InputSet], runs: Sequence[Tensors]) -> list[str]:
    """Notes about outputs that are empty or NaN, or do not depend on the inputs.

    Whole numbers and booleans often rightly depend on nothing (masks, positions); these are noted
    where no other output shows anything, as a class that always wins is.

    Args:
        sets: inputs.
        runs: what a model returns for each.
    """
    notes = [
        f"{name} has no elements in any run, so that nothing about it was compared"
        for name in runs[0]
        if not any(run[name].numel() for run in runs if name in run)
    ]
    notes += [
        f"{name} is NaN in the reference itself, and nothing is equal to that: look at its weights "
        "(a negative running variance does that) and at the inputs"
        for name in runs[0]
        if any(run[name].isnan().any() for run in runs if name in run)
    ]
    shown = {name: tensor for name, tensor in runs[0].items() if tensor.numel()}
    comparable = len(sets) > 1 and not same_start(sets[0], sets[1])
    same = [
        name
        for name, tensor in shown.items()
        if comparable
        and is_inexact(tensor)
        and name in runs[1]
        and _same_first_row(tensor, runs[1][name])
    ]
    notes += [
        f"{name} is the same for different inputs, so that it says nothing about the weights "
        "before it; is the last layer zero?"
        for name in same
    ]
    whole = [name for name, tensor in shown.items() if not is_inexact(tensor)]
    constant = [name for name in whole if comparable and not _varies(name, sets, runs)]
    if len(same) + len(constant) == len(shown):
        notes += [
            f"{name} is the same for all inputs, so that other weights may well give it, too"
            for name in constant
        ]
    return notes


def blind_outputs(subject: Subject, sets: Sequence[InputSet], runs: Sequence[Tensors]) -> list[str]:
    """A note if no output depends on the parameters, as runs with others show.

    Those that depend on nothing else either are for `weak_outputs`.

    Args:
        subject: what was run.
        sets: inputs.
        runs: what it returned for each in float64.
    """
    given = {
        name: tensor.detach()
        for name, tensor in subject.model.named_parameters()
        if tensor.is_floating_point() and tensor.layout == torch.strided
    }
    if not given or weak_outputs(sets, runs):
        return []
    others = replace(subject, state=MadeWhenAsked(given, _drawn))
    with in_float64(others, little_memory=True) as run:
        for one, before in zip(sets, runs, strict=True):
            after = run(one)
            if isinstance(after, Exception) or not _equal(before, after):
                return []
    return ["no output depends on the parameters: with others, drawn at random, all were the same"]


def _drawn(name: str, tensor: Tensor) -> Tensor:
    """Other numbers of the same size; the same ones each time."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    return tensor + noise * (tensor.abs().mean() + 0.1)


def _equal(before: Tensors, after: Tensors) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(tensor, after[name]) for name, tensor in before.items()
    )


def _same_first_row(left: Tensor, right: Tensor) -> bool:
    if left.shape == right.shape:
        return torch.equal(left, right)
    if not (left.dim() and right.dim()):  # one row, squeezed
        return torch.equal(left.reshape(-1)[:1], right.reshape(-1)[:1])
    return torch.equal(left[:1], right[:1])


def _varies(name: str, sets: Sequence[InputSet], runs: Sequence[Tensors]) -> bool:
    """Whether an output has two rows that differ, be it in their shapes."""
    found = [
        _rows(run[name], one)
        for one, run in zip(sets, runs, strict=True)
        if name in run and run[name].numel()
    ]
    first = found[0][0]
    return any(rows.shape[1:] != first.shape or not (rows == first).all() for rows in found)


def _rows(tensor: Tensor, inputs: InputSet) -> Tensor:
    """A tensor with its rows along the first axis; all of it is one row if it has no batch axis."""
    batched = tensor.dim() and tensor.shape[0] == inputs.batch
    return tensor if batched else tensor.unsqueeze(0)
