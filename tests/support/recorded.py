"""Draws what the analysis of a model might have recorded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st


@st.composite
def recorded(draw):
    """Sizes of batches of units, tables of labels, selections of units, and ties of batches."""
    births = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    unit = st.integers(0, sum(births) - 1)
    label = st.one_of(unit, unit, st.integers(-4, -2))
    tables = []
    for _ in range(draw(st.integers(0, 3))):
        width = draw(st.integers(2, 3))
        rows = st.lists(label, min_size=width, max_size=width)
        tables.append(draw(st.lists(rows, min_size=1, max_size=8)))
    starts, ties = np.cumsum([0, *births]), []
    for one, two in pairwise(range(len(births))):
        if births[one] == births[two] and draw(st.booleans()):
            order = draw(st.permutations(range(births[two])))
            ties.append((starts[one] + np.arange(births[one]), starts[two] + np.array(order)))
    selections = draw(st.lists(st.lists(unit, min_size=1, max_size=3), max_size=2))
    return births, tables, selections, ties
