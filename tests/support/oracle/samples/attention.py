"""Samples of fused attention; sizes: 2 heads, 3 queries, 4 keys, 5 dims of keys, 6 of values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.oracle.sample import Operand, bools, p, sample

aten = torch.ops.aten

FIRST = {"*": "the first query looks at one key: what it holds does not matter"}


def qkv(batch: int = 1, heads: int = 2, groups: int = 1, values: int = 6) -> tuple[Operand, ...]:
    return (
        p(batch, heads * groups, 3, 5),
        p(batch, heads, 4, 5),
        p(batch, heads, 4, values),
    )


def _math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return aten._scaled_dot_product_attention_math(q, k, v, bias)[0]


def _flash(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return _math(q, k, v)


def _biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    return _math(q, k, v, bias)


def _first(overload: Any) -> Any:
    """The output proper; the others are pinned, which would hide what is known of it."""

    def call(*args: Any, **options: Any) -> Tensor:
        return overload(*args, **options)[0]

    return call


MATH = aten._scaled_dot_product_attention_math.default
FOR_CPU = aten._scaled_dot_product_flash_attention_for_cpu.default

_FUSED = [
    sample(FOR_CPU, *qkv(values=5)),
    sample(
        FOR_CPU, p(1, 2, 4, 5), *qkv(values=5)[1:], 0.0, True, call=_first(FOR_CPU), missing=FIRST
    ),
    sample(FOR_CPU, *qkv(values=5), attn_mask=p(3, 4), call=_first(FOR_CPU), search=False),
    sample(
        *(aten._scaled_dot_product_flash_attention.default, *qkv(values=5)),
        call=_first(aten._scaled_dot_product_flash_attention.default),
        reference=_flash,
        search=False,
    ),
    sample(
        *(aten._scaled_dot_product_efficient_attention.default, *qkv(values=5)),
        *(p(1, 2, 3, 4), False),
        call=_first(aten._scaled_dot_product_efficient_attention.default),
        reference=_biased,
        search=False,
    ),
    sample(
        *(aten._scaled_dot_product_cudnn_attention.default, *qkv(values=5), None, False),
        call=_first(aten._scaled_dot_product_cudnn_attention.default),
        reference=_flash,
        search=False,
    ),
]

_COMPOSITE = [
    sample(MATH, *qkv(), call=_first(MATH), search=False),
    sample(MATH, *qkv(), search=False),
    sample(MATH, *qkv(), p(3, 4), call=_first(MATH)),
    sample(MATH, *qkv(), p(2, 1, 4), call=_first(MATH), search=False),
    sample(MATH, *qkv(), bools(3, 1), call=_first(MATH), search=False),
    sample(MATH, p(1, 2, 3, 5), p(1, 2, 3, 5), p(1, 2, 3, 6), None, 0.0, True, missing=FIRST),
    sample(
        *(MATH, *qkv(groups=3)),
        enable_gqa=True,
        split={"query": (1, 2, 3, 3, 5), "out0": (1, 2, 3, 3, 6)},
        call=_first(MATH),
    ),
    sample(MATH, *qkv(batch=2), call=_first(MATH), search=False),
    sample(MATH, p(2, 3, 5), p(2, 4, 5), p(2, 4, 6), call=_first(MATH), search=False),
    sample(MATH, p(1, 2, 3, 5), p(2, 2, 4, 5), p(2, 2, 4, 6), call=_first(MATH), search=False),
    sample(MATH, p(2, 1, 3, 5), p(2, 2, 4, 5), p(2, 2, 4, 6), call=_first(MATH), search=False),
    sample(MATH, p(2, 1, 3, 5), p(1, 1, 4, 5), p(2, 2, 4, 6), call=_first(MATH), search=False),
    sample(MATH, p(2, 3, 5), p(4, 5), p(4, 6), missing={"*": "no heads"}, call=_first(MATH)),
    sample(MATH, p(3, 5), p(4, 5), p(4, 6), missing={"*": "no heads"}, call=_first(MATH)),
    sample(aten.scaled_dot_product_attention.default, *qkv(), search=False),
    sample(aten.scaled_dot_product_attention.default, *qkv(), p(2, 3, 4), search=False),
]

SAMPLES = [*_FUSED, *_COMPOSITE]
