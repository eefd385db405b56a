"""Bringing the units of checkpoints into one order: which method, with what, and what it found."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import fxrebasin
from fxrebasin.alignment import Alignment, Certificate, applied
from fxrebasin.api import matched
from fxrebasin.cli.options import AS_THEY_ARE, JOINT, HowToMatch, Inputs
from fxrebasin.cli.user_objects import batches, function
from fxrebasin.cli.work import Bench
from fxrebasin.errors import InputError
from fxrebasin.ignoring import fits
from fxrebasin.merge.many import ALIGNERS
from fxrebasin.merge.own_tensors import by_shapes
from fxrebasin.merge.states import own_state
from fxrebasin.passes.match.methods import METHODS
from fxrebasin.permutation import Permutation
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.reading import Checkpoint, Move

_OPTIONS = {"restarts": "--restarts", "loader": "--data", "loss": "--loss"}


@dataclass(frozen=True)
class Aligned:
    """What brings checkpoints into the order of the first one.

    Args:
        method: that found it.
        permutations: of each checkpoint; None where units stay as they are.
        reports: of methods that match one checkpoint with the first; None for others.
    """

    method: str
    permutations: tuple[Certificate | None, ...]
    reports: tuple[RebasinReport | None, ...]

    @property
    def found(self) -> tuple[RebasinReport, ...]:
        """The reports that there are."""
        return tuple(report for report in self.reports if report is not None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What puts in doubt or limits what was found, once each."""
        return tuple(dict.fromkeys(note for report in self.found for note in report.notes))


def method_options(bench: Bench, method: str, matching: HowToMatch) -> dict[str, Any]:
    """The options of a method, made of those of the command line.

    Args:
        bench: has the model.
        method: of matching.
        matching: what was written.

    Raises:
        InputError: the method does not take one of them, or it names nothing.
    """
    given = {"restarts": matching.restarts, "loader": matching.data, "loss": matching.loss}
    wanted: dict[str, Any] = {n: value for n, value in given.items() if value is not None}
    for name in wanted:
        takers = [m for m, f in {**METHODS, **ALIGNERS}.items() if name in _parameters(f)]
        if method not in takers:
            raise InputError(
                f"{_OPTIONS[name]} is of no use to the method {method}; "
                f"those that take it are: {', '.join(sorted(takers))}"
            )
    if matching.data is not None:
        wanted["loader"] = batches(matching.data, "--data", bench)
    if matching.loss is not None:
        wanted["loss"] = function(matching.loss, "--loss")
    return wanted


def align(
    bench: Bench,
    checkpoints: Sequence[Checkpoint],
    method: str,
    matching: HowToMatch,
    inputs: Inputs,
    *,
    run: bool = True,
) -> Aligned:
    """Match the units of checkpoints with those of the first, and prove what was found.

    Args:
        bench: has the model; afterwards it holds the first checkpoint.
        checkpoints: at least two.
        method: of matching.
        matching: its options.
        inputs: which outputs and buffers count.
        run: run the model in both orders, where one checkpoint is matched at a time.

    Raises:
        FxRebasinError: what the methods raise.
    """
    options = method_options(bench, method, matching)
    if method == AS_THEY_ARE:
        nothing = (None,) * len(checkpoints)
        bench.lay(checkpoints[0])
        return Aligned(method, nothing, nothing)
    common = {
        "seed": matching.seed,
        "symmetry": matching.symmetry,
        **inputs.choices,
        **options,
    }
    if bench.reading.ignore:
        common["ignore"] = bench.reading.ignore
    if method in JOINT:
        module = bench.lay(checkpoints[0])
        found = fxrebasin.align_many(
            [dict(checkpoint.state) for checkpoint in checkpoints],
            method,
            model=module,
            example_inputs=bench.example.args,
            example_kwargs=bench.example.kwargs,
            **common,
        )
        return Aligned(method, tuple(found), (None,) * len(checkpoints))
    reports = [
        matched(
            bench.lay(checkpoint),
            dict(checkpoints[0].state),
            bench.example.args,
            bench.example.kwargs,
            method,
            verify=run,
            **common,
        )
        for checkpoint in checkpoints[1:]
    ]
    reports = [
        replace(report, certificate=_for_file(bench, checkpoint, report))
        for checkpoint, report in zip(checkpoints[1:], reports, strict=True)
    ]
    bench.lay(checkpoints[0])
    return Aligned(method, (None, *(r.certificate for r in reports)), (None, *reports))


def _for_file(bench: Bench, checkpoint: Checkpoint, report: RebasinReport) -> Certificate:
    """What acts on the tensors of a file, which may differ from the model's if ignored."""
    found = report.certificate
    if not bench.reading.ignore or isinstance(found, Alignment):
        return found
    return by_shapes(
        found,
        checkpoint.state,
        own_state(bench.module),
        report.ignored,
        str(checkpoint.path),
        [name for name in checkpoint.extra if fits(name, bench.reading.ignore)],
    )


def default_method(count: int) -> str:
    """The method for a number of checkpoints."""
    return "weight" if count == 2 else JOINT[0]


def moved(checkpoint: Checkpoint, permutation: Certificate | None) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint as they are stored, with their units in another order.

    Args:
        checkpoint: whose model was matched or analysed, in its own precision.
        permutation: of the units, or an alignment; None for none.
    """
    if permutation is None:
        return dict(checkpoint.state)
    # Constants were compared on the model; here they may be of another dtype.
    return applied(permutation, checkpoint.state, check_constants=False)


def for_copies(permutation: Certificate) -> Move | None:
    """What makes other copies in a file fit, averages and moments; None where nothing does.

    Only permutations act on one tensor by itself, and in the same way on weights and on moments.

    Args:
        permutation: of the units, or an alignment.
    """
    return permutation.permute_tensor if isinstance(permutation, Permutation) else None


def _parameters(method: Any) -> Sequence[str]:
    return tuple(inspect.signature(method).parameters)
