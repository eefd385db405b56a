"""From what data show of two models to the element that they show."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxrebasin.indexing import Arrays
from fxrebasin.kinds import GroupKind
from fxrebasin.passes.match import correlating
from fxrebasin.passes.match.evidence import Evidence
from fxrebasin.passes.match.group_problem import Element, GroupProblem
from fxrebasin.passes.match.middle import distances_midway
from fxrebasin.passes.match.refining import refined
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Runner
from fxrebasin.solvers.weight_search import solve_from_evidence

_FIXING = GroupKind.ORTHOGONAL_FIXING_ONES
_ALIKE = 1.05
"""Distances midway up to this share of the least are as good; of these the closest weights win."""


def concluded(evidence: Evidence, running: Runner, report: LateBar) -> Element:
    """The element that data show, and weights where they show nothing.

    Where only signs and factors act besides permutations, what is gained by them is little, and
    less than what one way of pairing units may lose against another. There, of several elements
    the best is taken: that by weights from what data show, that by data alone, and the permutation
    that is found without looking at groups. What the first two leave midway has to be closer to
    what both models compute than what the permutation leaves. That is for a reference of its own:
    the mean of many is no model, and whoever takes it compares what comes of it.

    Args:
        evidence: of all batches.
        running: of the model.
        report: shows how far this is.
    """
    problem = evidence.balanced.problem
    found, shown = _shown(evidence, report)
    rest = [c.name for c in problem.classes if c.name not in shown and problem.free(c)]
    scaled = [c.name for c in problem.classes if problem.groups.kinds[c.name].scales]
    heads = evidence.heads()
    refining = [[*rest, *scaled], *([rest] if evidence.only_units and scaled else [])]
    elements = [refined(evidence.balanced, found, names, shown=heads) for names in refining]
    if len(evidence.references) > 1 or not evidence.only_units or not evidence.first:
        return elements[0]
    written = evidence.pairs_written().assembled()
    arrays = solve_from_evidence(written.problem, problem.seed, report).arrays
    missing = [c.name for c in problem.classes if c.name not in written.found and problem.free(c)]
    plain = _plain(evidence.problem, arrays, missing, report)
    return _chosen(evidence, running, [plain, *elements])


def no_worse(
    evidence: Evidence, running: Runner, element: Element, report: LateBar
) -> tuple[Element, tuple[str, ...]]:
    """An element where matrices act, unless units do better that are only permuted, or left alone.

    Where models have little in common, as early in training, matrices that agree by chance keep
    weights large midway that would cancel out, and what they compute there is wrong.

    Args:
        evidence: of all batches, the first of which decide.
        running: of the model.
        element: that `concluded` found.
        report: shows how far this is.

    Returns:
        The element, and what a user should know, in words.
    """
    problem = evidence.problem
    if evidence.only_units or not evidence.first:
        return element, ()
    collector = correlating.Collector(problem.plain)
    collector.see(running, evidence.first, len(evidence.first), report)
    plain = correlating.concluded(problem.plain, collector, True, report).permutation
    found = _chosen(evidence, running, [Element(plain), problem.identity(), element])
    return found, () if found is element else (_LEFT,)


_LEFT = (
    "Units are only permuted, or left as they are: a model midway then computes what is closer to "
    "what both models do than after what larger groups allow. These models may have too little in "
    "common to be aligned."
)


def _shown(evidence: Evidence, report: LateBar) -> tuple[Element, Collection[str]]:
    """What data show of balanced states, and of which classes they show it."""
    problem = evidence.balanced.problem
    pairs = evidence.pairs()
    assembled = pairs.assembled()
    solution = solve_from_evidence(assembled.problem, problem.seed, report)
    turned = {
        name: polar(matrix, fix_ones=problem.groups.kinds[name].kind is _FIXING)
        for name, matrix in evidence.matrices().items()
    }
    elements = {**pairs.signs(solution.arrays), **turned}
    found = Element(problem.plain.permutation(solution.arrays), elements)
    return found, assembled.found | turned.keys()


def _plain(
    problem: GroupProblem, arrays: Arrays, missing: Sequence[str], report: LateBar
) -> Element:
    """A permutation, with classes that no data show matched by weights."""
    permutation = problem.plain.permutation(arrays)
    if missing:
        moved = permutation.permute_state_dict(problem.plain.state_b)
        rest = replace(problem.plain.weights, state_b=moved, free=missing)
        by_weights = solve_from_evidence(rest, problem.seed, report)
        permutation = problem.plain.permutation(by_weights.arrays).compose(permutation)
    return Element(permutation)


def _chosen(evidence: Evidence, running: Runner, elements: Sequence[Element]) -> Element:
    """The best of some elements, the first of which is what any other has to be better than."""
    problem = evidence.problem
    moved = [{**problem.state_b, **problem.moved(element)} for element in elements]
    midway = distances_midway(running, problem.state_a, moved, evidence.first)
    usable = [k for k in range(len(elements)) if k == 0 or midway[k] < midway[0]]
    most = _ALIKE * min(midway[k] for k in usable)

    def apart(k: int) -> float:
        names = problem.compared
        return sum(float((problem.state_a[n] - moved[k][n]).square().sum()) for n in names)

    return elements[min((k for k in usable if midway[k] <= most), key=apart)]


def polar(matrix: Tensor, *, fix_ones: bool) -> Tensor:
    """The orthogonal matrix that agrees most with another one, of shape (1, units, units).

    Args:
        matrix: of shape (units, units).
        fix_ones: whether it has to leave the vector of ones as it is.
    """
    wide = matrix.double()
    if fix_ones:  # the means become one direction that is agreed on more than any other
        wide = wide - wide.mean(0, keepdim=True)
        wide = wide - wide.mean(1, keepdim=True)
        wide = wide + (wide.norm() + 1) / len(wide)
    left, _, right = torch.linalg.svd(wide)
    found: Tensor = left @ right
    return found[None]
