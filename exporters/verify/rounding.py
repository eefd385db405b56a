"""What rounding costs two models that should compute the same, in their own precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fxrebasin.exporters.verify.floors import tolerance_of
from fxrebasin.exporters.verify.references import reference_runs
from fxrebasin.exporters.verify.runs import Subject, Tensors, run_native
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.running.apart import is_inexact, relative_error
from fxrebasin.running.outputs import Wanted

_SMALL = 1e-3
"""Above this no rounding of float32 is looked for, since that takes more runs."""


def rounding_of(
    model: nn.Module,
    other: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    wanted: Wanted = None,
) -> tuple[float, float]:
    """How far two modules are, in their own precision, from what the first computes in float64.

    Args:
        model: the reference; any mode, it is run in eval mode.
        other: a module that takes the same inputs and should compute the same.
        args: positional inputs.
        kwargs: keyword inputs.
        wanted: which outputs count; see `fxrebasin.running.outputs`.

    Returns:
        Of each, the largest error of an output, relative to its largest value.

    Raises:
        InputError: the first does not run on these inputs.

    Example:
        >>> import torch
        >>> net = nn.Linear(3, 2)
        >>> one, two = rounding_of(net, net, (torch.ones(4, 3),), {})
        >>> one == two < 1e-5
        True
    """
    reference = Subject(model, wanted=wanted)
    candidate = Subject(other, label="the other model", wanted=wanted, strict=False)
    references = reference_runs(reference, args, kwargs, any_batch=False)
    errors = []
    for subject in (reference, candidate):
        runs = run_native(subject, references.sets)
        errors.append(max(map(_largest_error, references.runs, runs), default=0.0))
    return errors[0], errors[1]


def _largest_error(wide: Tensors, run: Tensors | Exception) -> float:
    if isinstance(run, Exception):
        return 0.0
    shared = [name for name in wide if name in run and is_inexact(run[name])]
    return max((relative_error(wide[name], run[name]) for name in shared), default=0.0)


def with_rounding_told(
    report: EquivalenceReport,
    model: nn.Module,
    other: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    wanted: Wanted = None,
) -> EquivalenceReport:
    """A report with a note if two models differ in float64, but not by more than they round.

    So they do if weights of one were computed from those of the other and rounded: BatchNorm folded
    into a convolution, constants merged, a conversion. The verdict stays, since a wrong permutation
    of units that matter little can be as small.

    Args:
        report: of the comparison in float64.
        model: the reference.
        other: what it was compared with.
        args: positional inputs.
        kwargs: keyword inputs.
        wanted: which outputs count; see `fxrebasin.running.outputs`.
    """
    faults = report.structure or any(figures.problems for figures in report.outputs)
    if report.passed or faults or not report.max_rel <= _SMALL:
        return report
    floor, _ = rounding_of(model, other, args, kwargs, wanted)
    if report.max_rel > tolerance_of(floor):
        return report
    note = (
        f"rounding in its own precision costs the reference as much (up to {floor:.2g}): weights "
        "of one may have been computed from those of the other and stored rounded, as when "
        "BatchNorm is folded into a convolution. A permutation alone leaves no such difference"
    )
    return replace(report, notes=(*report.notes, note))
