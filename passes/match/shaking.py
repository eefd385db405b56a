"""Random elements of the groups of some classes, from which a search sets out again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fxrebasin.charts import Chart
from fxrebasin.indexing import identity_arrays
from fxrebasin.kinds import GroupKind
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.match.group_problem import Element, GroupProblem

_FAR = 3.0
"""Deviation of coordinates: far enough for any rotation."""


def shaken(problem: GroupProblem, element: Element, generator: np.random.Generator) -> Element:
    """An element followed by a random one of a random share of the classes.

    Between balanced states what may be any invertible matrix is a rotation, and so are the random
    matrices. Classes within others go with them.

    Args:
        problem: between balanced states.
        element: acts first.
        generator: of the random one.
    """
    share = generator.uniform(0.1, 1.0)
    roots = sorted(c.name for c in problem.classes if not c.within)
    chosen = {name for name in roots if generator.random() < share}
    moving = [
        c for c in problem.classes if problem.free(c) and not chosen.isdisjoint({c.name, *c.within})
    ]
    arrays = identity_arrays(problem.plain.symmetry.classes)
    elements = {}
    for c in moving:
        if problem.groups.kinds[c.name].kind.has_matrices:
            elements[c.name] = _rotation(problem, c, generator)
        elif c.name in arrays:
            arrays[c.name] = generator.permuted(arrays[c.name], axis=-1)
    return problem.combined(Element(problem.plain.permutation(arrays), elements), element)


def _rotation(problem: GroupProblem, c: PermutationClass, generator: np.random.Generator) -> Tensor:
    own = problem.groups.kinds[c.name]
    kind = GroupKind.ORTHOGONAL if own.kind is GroupKind.GENERAL_LINEAR else own.kind
    chart = Chart(c, kind, own.partner)
    drawn = torch.from_numpy(generator.normal(scale=_FAR, size=tuple(chart.zeros().shape)))
    if kind is GroupKind.COMPLEX_PAIRS:
        drawn[:, 0] = 0.0
    return chart.element(drawn).own
