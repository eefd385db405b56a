"""Bringing the units of checkpoints into one order: which method, with what, and what it found."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import fxrebasin
from fxrebasin.alignment import Alignment, Certificate, applied
from fxrebasin.calls.matching import Unproved, unproved
from fxrebasin.cli.options import AS_THEY_ARE, JOINT, HowToMatch, Inputs
from fxrebasin.cli.user_objects import batches, function
from fxrebasin.cli.work import Bench
from fxrebasin.errors import InputError
from fxrebasin.ignoring import fits
from fxrebasin.merge.many import ALIGNERS
from fxrebasin.merge.own_tensors import by_shapes
from fxrebasin.merge.states import own_state
from fxrebasin.models.emptied import is_emptied
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
    reports = []
    for checkpoint in checkpoints[1:]:
        pair = (checkpoints[0], checkpoint)
        match = _matched(bench, pair, method, options, matching, inputs)
        report = match.proved() if run else match.report
        reports.append(replace(report, certificate=_for_file(bench, checkpoint, report)))
    bench.lay(checkpoints[0])
    return Aligned(method, (None, *(r.certificate for r in reports)), (None, *reports))


def align_pair(
    bench: Bench,
    pair: list[Checkpoint],
    method: str,
    matching: HowToMatch,
    inputs: Inputs,
    *,
    run: bool = True,
    keep: bool = False,
) -> RebasinReport:
    """Match the units of a checkpoint with those of a reference, which is let go when it was read.

    Args:
        bench: has the model, which may be emptied.
        pair: the reference, in whose place one without weights is put, and the checkpoint.
        method: of matching.
        matching: its options.
        inputs: which outputs and buffers count.
        run: run the model in both orders.
        keep: do not let go of the reference.

    Raises:
        FxRebasinError: what the methods raise.
    """
    options = method_options(bench, method, matching)
    found = _matched(bench, (pair[0], pair[1]), method, options, matching, inputs)
    if not keep:
        pair[0] = replace(pair[0], state={}, source=None)
    report = found.proved() if run else found.report
    return replace(report, certificate=_for_file(bench, pair[1], report))


def _matched(
    bench: Bench,
    pair: tuple[Checkpoint, Checkpoint],
    method: str,
    options: Mapping[str, Any],
    matching: HowToMatch,
    inputs: Inputs,
) -> Unproved:
    """What brings the second checkpoint into the order of the first."""
    reference, checkpoint = pair
    emptied = is_emptied(bench.module)
    return unproved(
        bench.lay_buffers(checkpoint) if emptied else bench.lay(checkpoint),
        dict(reference.state),
        (bench.example.args, bench.example.kwargs),
        (method, options, matching.symmetry),
        inputs.choices,
        matching.seed,
        ignore=bench.reading.ignore,
        stored=bench.fitting(checkpoint) if emptied else None,
    )


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
