"""From what data show of two models to the element that they show."""

from __future__ import annotations

import torch
from torch import Tensor

from fxrebasin.kinds import GroupKind
from fxrebasin.passes.match.evidence import Evidence
from fxrebasin.passes.match.group_problem import Element
from fxrebasin.passes.match.refining import refined
from fxrebasin.progress import LateBar
from fxrebasin.solvers.weight_search import solve_from_evidence

_FIXING = GroupKind.ORTHOGONAL_FIXING_ONES


def concluded(evidence: Evidence, report: LateBar) -> Element:
    """The element that data show, and weights where they show nothing.

    Args:
        evidence: of all batches.
        report: shows how far this is.
    """
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
    shown = assembled.found | turned.keys()
    rest = [c.name for c in problem.classes if c.name not in shown and problem.free(c)]
    scaled = [c.name for c in problem.classes if problem.groups.kinds[c.name].scales]
    return refined(evidence.balanced, found, [*rest, *scaled], shown=evidence.heads())


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
