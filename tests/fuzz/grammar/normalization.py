"""Normalisation and reductions."""

from __future__ import annotations

from tests.fuzz.grammar.registry import has_axes, step
from tests.fuzz.scope import Cursor

REDUCTIONS = (
    *("{}.sum({}, keepdim={})", "{}.mean({}, keepdim={})", "{}.amax({}, keepdim={})"),
    *("{}.amin({}, keepdim={})", "torch.logsumexp({}, {}, keepdim={})"),
    *("torch.linalg.vector_norm({}, 2, {}, keepdim={})", "{}.var({}, keepdim={})"),
    "torch.std({}, {}, keepdim={}, correction=0)",
)


def dims(c: Cursor, x: str, least: int = 1) -> tuple[int, ...]:
    """Some axes, the batch rarely; negative at times."""
    ndim = len(c.shapes[x])
    axes = range(0 if ndim == 1 or c.flag(6) else 1, ndim)
    found = c.some(axes, least)
    return tuple(axis - ndim if c.flag(4) else axis for axis in found)


@step
def reduce(c: Cursor) -> None:
    x = c.operand()
    c.result(str(c.one_of(*REDUCTIONS)).format(x, dims(c, x), c.flag(2)))


@step
def reduce_one(c: Cursor) -> None:
    """Reductions along one axis."""
    x = c.operand()
    axis = c.axis(x)
    text = c.one_of(
        *(
            "{}.max({}).values",
            "{}.contiguous().median({}).values",
            "{}.prod({})",
            "{}.norm(dim={})",
        ),
        *("({} > 0).sum({}) * 0.3", "({} > 0).any({}) * 1.0", "({} > -1).all({}) * 1.0"),
        *("{}.cumsum({})", "{}.logcumsumexp({})", "{}.sort({}).values", "{}.cummax({}).values"),
        *("{}.kthvalue(1, {}).values", "{}.argmax({}) * 0.5", "{}.nansum({})"),
        "torch.var_mean({}, {})[0]",
    )
    c.result(text.format(x, axis))


@step
def centred(c: Cursor) -> None:
    x = c.operand()
    axes = dims(c, x)
    text = c.one_of(
        *(
            "{0} - {0}.mean({1}, keepdim=True)",
            "{0} * ({0}.square().mean({1}, keepdim=True) + 1.0).rsqrt()",
        ),
        "{0} - {0}.amax({1}, keepdim=True)",
    )
    c.result(text.format(x, axes))


@step
def softmax(c: Cursor) -> None:
    x = c.operand()
    c.result(f"{x}.{c.one_of('softmax', 'log_softmax')}({c.axis(x)})")


@step
def layer_norm(c: Cursor) -> None:
    x = c.operand()
    shape = c.shapes[x]
    shape = shape[-c.one_of(*range(1, max(len(shape), 2))) :]
    affine = f", {c.parameter(*shape)}, {c.parameter(*shape)}" if c.flag(2) else ""
    name = "F.rms_norm" if c.flag(4) and not affine else "F.layer_norm"
    c.result(f"{name}({x}, {shape}{affine})")


@step
def batch_norm(c: Cursor) -> None:
    """With random running statistics."""
    x = c.operand(has_axes(2))
    n = c.shapes[x][1]
    mean, variance = c.buffer(f"randn({n})"), c.buffer(f"rand({n})")
    affine = f", {c.parameter(n)}, {c.parameter(n)}" if c.flag(2) else ""
    c.result(f"F.batch_norm({x}, {mean}, {variance}{affine})")


@step
def group_norm(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    n = c.shapes[x][1]
    groups = c.one_of(*[g for g in (1, 2, 3, n) if n % g == 0])
    affine = f", {c.parameter(n)}, {c.parameter(n)}" if c.flag(2) else ""
    c.result(f"F.group_norm({x}, {groups}{affine})")


@step
def instance_norm(c: Cursor) -> None:
    x = c.operand(has_axes(3, 4))
    c.result(f"F.instance_norm({x})")


@step
def pooled(c: Cursor) -> None:
    x = c.operand(has_axes(3, 4))
    dims = len(c.shapes[x]) - 2
    name = c.one_of(
        "F.avg_pool{}d({}, 2)", "F.max_pool{}d({}, 2, stride=1)", "F.adaptive_avg_pool{}d({}, 1)"
    )
    c.result(name.format(dims, x))


@step
def scattered_statistics(c: Cursor) -> None:
    """Functions of all elements at once, given back to each."""
    x = c.operand()
    c.result(
        c.one_of(
            "{0} - {0}.mean()", "{0} / (1.0 + {0}.norm())", "{0} * {0}.amax().sigmoid()"
        ).format(x)
    )
