"""What is told of a match, and how long its stages took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from torch import fx

from fxrebasin.calls.request import Request
from fxrebasin.exporters.verify.floors import FLOAT64_TOLERANCE
from fxrebasin.exporters.verify.rounding import rounding_of
from fxrebasin.passes.match.methods import MatchResult
from fxrebasin.passes.match.result import AlignmentResult
from fxrebasin.passes.trace.trace import TraceResult
from fxrebasin.progress import waiting
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.symmetry import Symmetry

_ROUNDS_WORSE = 3.0
"""A result that rounds more than this times as badly as the model is spoken of."""


def with_rounding(report: RebasinReport, request: Request, result: fx.GraphModule) -> RebasinReport:
    """The report, with how the model and the result round in their own precision.

    Args:
        report: of the match.
        request: what was asked for.
        result: the graph that is handed out.
    """
    inputs = (request.args, request.kwargs)
    own, other = rounding_of(request.model, result, *inputs, request.choices.outputs)
    notes = report.notes
    if other > _ROUNDS_WORSE * max(own, FLOAT64_TOLERANCE):  # below which all is alike
        notes = (
            *notes,
            f"the result rounds worse than the model: relative errors {other:.2g} and {own:.2g}",
        )
    return replace(report, rounding=(own, other), notes=notes)


_SHOWS_ITS_PROGRESS = "match"


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Write down how long a stage takes, and show that it is at work if that is long.

    Args:
        seconds: by stage; this one is added.
        stage: its name.
    """
    began = time.perf_counter()
    with nullcontext() if stage == _SHOWS_ITS_PROGRESS else waiting(stage):
        yield
    seconds[stage] = time.perf_counter() - began


def report_of(
    request: Request,
    symmetry: Symmetry,
    found: MatchResult | AlignmentResult,
    seconds: Mapping[str, float],
    equivalence: EquivalenceReport | None,
    traced: TraceResult | None = None,
) -> RebasinReport:
    """The report of a match.

    Args:
        request: what was asked for.
        symmetry: of the model.
        found: by the method.
        seconds: by stage.
        equivalence: the proof, if one was asked for.
        traced: the graph, if one was made.
    """
    notes = traced.notes if traced is not None else ()
    return RebasinReport(
        method=request.method,
        objective_before=found.objective_before,
        objective_after=found.objective_after,
        distance_before=found.distance_before,
        distance_after=found.distance_after,
        sweeps=found.sweeps,
        seconds=seconds,
        tracer=traced.tracer if traced is not None else None,
        notes=(*request.notes, *notes, *symmetry.notes, *found.notes),
        equivalence=equivalence,
        certificate=found.certificate,
        log10_order=symmetry.log10_order(),
        unknown_operators=symmetry.unknown_operators,
        ignored=request.ignored,
    )
