"""Samples of all operators that have a rule, one file per family."""

from tests.support.oracle.samples import (
    attention,
    backward,
    contraction,
    fourier,
    indexing,
    movement,
    normalization,
    others,
    pointwise,
    pooling,
    programs,
    reduction,
    sampling,
)

_FAMILIES = (
    *(pointwise, contraction, movement, indexing),
    *(reduction, normalization, pooling, attention, sampling, fourier, others, backward),
)
OPERATORS = [item for family in _FAMILIES for item in family.SAMPLES]
PROGRAMS = programs.SAMPLES
