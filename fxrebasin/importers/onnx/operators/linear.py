"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from fxrebasin.importers.onnx.registry import operator, operators

operators(
    {
        "MatMul": torch.matmul,
        "Einsum": lambda *values, equation: torch.einsum(equation, *values),
    }
)


@operator("Gemm")
def gemm(
    left: Tensor,
    right: Tensor,
    added: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """A product of two matrices, scaled, with something added."""
    product = (left.t() if transA else left) @ (right.t() if transB else right)
    product = product if alpha == 1 else _times(product, alpha)
    if added is None:
        return product
    return product + (added if beta == 1 else _times(added, beta))


def _times(value: Tensor, factor: float) -> Tensor:
    return (value * factor).to(value.dtype)
