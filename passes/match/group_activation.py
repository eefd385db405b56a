"""Method "activation" over the groups of a symmetry: what reacts alike on data belongs together."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.concluding import concluded, no_worse
from fxrebasin.passes.match.evidence import Evidence
from fxrebasin.passes.match.group_problem import GroupProblem, GroupResult
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import runner

_INTERRUPTED = "matching was interrupted: only the batches so far are used"


def match_activations_over_groups(
    problem: GroupProblem, *, loader: Iterable[Any], max_batches: int | None = None
) -> GroupResult:
    """Activation matching over groups: rotations by what is read of streams, pairs by correlations.

    Streams are compared where modules read them, at all depths: the rotation is the polar factor
    of the sum of their cross-moments, each depth with the same weight. Units that are told apart
    are paired as `"activation"` pairs them, by what modules read of them if any does; the sign of a
    correlation is that of a unit where signs may be chosen. Heads are assigned, and matrices within
    them found, by the cross-moments of what all heads hold in balanced models, and as much by their
    weights. What no module shows is matched by weights alone, with the rest held. The permutation
    that `"activation"` finds without groups is returned unless what the groups allow brings what a
    model midway computes closer to what both models do, on the first few batches, and so are units
    as they are where that is better than either. Only sums are kept: memory is for a few batches,
    for one of what modules read, and n² numbers for n units. On Ctrl-C the batches so far count,
    with a warning.

    Args:
        problem: what to match; its seed decides the order of a shuffling loader.
        loader: any iterable of batches, `(inputs, targets)` or inputs alone, whose targets are not
            used. It is gone through once.
        max_batches: how many batches to use; all when left out.

    Raises:
        InputError: an option cannot be used, or the model does not run on a batch.
    """
    if max_batches is not None:
        check_count("max_batches", max_batches)
    evidence = Evidence(problem)
    with closing(LateBar()) as report, runner(problem.plain.model, problem.seed) as running:
        with interruptible(_INTERRUPTED):
            evidence.collect(running, loader, max_batches, report)
        found = concluded(evidence, running, report)
        found, notes = no_worse(evidence, running, found, report)
        return GroupResult(found, 1, notes)
