"""Products with sparse matrices, which are constants: adjacency, incidence, resampling."""

from __future__ import annotations

from fxrebasin.passes.rules.contraction import contraction, plus_contraction

contraction("n k, k m -> n m", "_sparse_mm.default")
plus_contraction("n k, k m -> n m", "mat1", "mat2", "_sparse_addmm")
