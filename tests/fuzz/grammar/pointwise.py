"""Functions of the elements at one position."""

from __future__ import annotations

from tests.fuzz.grammar.registry import full, ones_but, step
from tests.fuzz.scope import Cursor

ONE = (
    *("torch.relu({})", "torch.tanh({})", "torch.sigmoid({})", "F.gelu({})", "torch.sin({})"),
    *("F.softplus({})", "{} * 0.5", "{} + 1.0", "{}.abs()", "{}.square()", "-{}", "1.0 - {}"),
    *("{}.clamp(min=-0.5, max=0.7)", "F.leaky_relu({})", "{} / (1.0 + {}.abs())", "F.silu({})"),
    *("torch.exp(-{}.square())", "{}.clone()", "F.hardtanh({})", "{}.pow(3)", "F.elu({})"),
    *(
        "(1.0 + {}.abs()).rsqrt()",
        "(1.0 + {}.abs()).log()",
        "F.dropout({}, training=self.training)",
    ),
    *("({} > 0).to({}.dtype)", "{}.sign()", "torch.atan({})", "F.mish({})", "{}.round()"),
)
TWO = (
    "{} + {}",
    "{} * {}",
    "{} - {}",
    "torch.maximum({}, {})",
    "{} / (1.0 + {}.abs())",
    "torch.where({} > 0, {}, 0.3)",
)


@step
def one_operand(c: Cursor) -> None:
    x = c.operand()
    text = c.one_of(*ONE)
    c.result(text.replace("{}", x))


@step
def two_operands(c: Cursor) -> None:
    x = c.operand()
    shape = c.shapes[x]
    y = c.operand(lambda other: _broadcasts(other, shape))
    c.result(_two(c, x, y))


def _two(c: Cursor, x: str, y: str) -> str:
    text = c.one_of(*TWO)
    return str(text).format(x, y)


def _broadcasts(one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    pairs = zip(reversed(one), reversed(two), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


@step
def with_parameter(c: Cursor) -> None:
    """A parameter along some of the axes."""
    x = c.operand()
    shape = c.shapes[x]
    axes = c.some(range(1 if len(shape) > 1 else 0, len(shape)))
    sizes = ones_but(len(shape), axes, shape)
    if c.flag(2):
        while len(sizes) > 1 and sizes[0] == 1:
            sizes.pop(0)
    parameter = c.parameter(*sizes)
    c.result(_two(c, x, parameter))


@step
def scale_and_shift(c: Cursor) -> None:
    x = c.operand()
    shape = c.shapes[x]
    axis = c.axis(x)
    sizes = [shape[axis]] + [1] * (len(shape) - 1 - axis)
    c.result(f"{x} * {c.parameter(*sizes)} + {c.parameter(*sizes)}")


@step
def shared_vector(c: Cursor) -> None:
    """One vector along several axes of one size."""
    x = c.operand(lambda shape: len(shape) > 1)
    shape = c.shapes[x]
    axis = c.axis(x)
    vector = c.parameter(shape[axis])
    others = [a for a in range(len(shape)) if shape[a] == shape[axis] and a]
    text = x
    for a in others or [axis]:
        tail = ", None" * (len(shape) - 1 - a)
        text += f" {c.one_of('*', '+')} {vector}[:{tail}]"
    c.result(text)


@step
def shared_by_groups(c: Cursor) -> None:
    """One vector scales groups of units, of whatever size they are in each variable."""
    x = c.operand()
    size = c.shapes[x][-1]
    groups = c.one_of(*[g for g in (2, 3, size) if size % g == 0])
    vector = c.parameter(groups)
    scaled = (
        f"{x}.unflatten(-1, ({groups}, {size // groups})) {c.one_of('*', '+')} {vector}[:, None]"
    )
    c.result(f"({scaled}){c.one_of('.flatten(-2)', '')}")


def constants(c: Cursor, count: int) -> str:
    """A list of numbers with some pattern."""
    kind = c.one_of("few", "same", "signed zeros", "all", "mask", "first", "zeros")
    if kind == "few":
        return str([(1.0, 2.0)[c.pick(2)] for _ in range(count)])
    if kind == "same":
        return str([1.5] * count)
    if kind == "signed zeros":
        return str([(0.0, -0.0)[c.pick(2)] for _ in range(count)])
    if kind == "mask":
        return str([(1.0, 0.0)[c.pick(2)] for _ in range(count)])
    if kind == "first":
        return str([1.0] + [0.5] * (count - 1))
    if kind == "zeros":
        return str([0.0] * count)
    return str([round(0.5 + 0.25 * index, 2) for index in range(count)])


@step
def with_buffer(c: Cursor) -> None:
    """Uniform buffers, few values, signed zeros, masks."""
    x = c.operand()
    shape = c.shapes[x]
    axis = c.axis(x)
    tail = ", 1" * (len(shape) - 1 - axis)
    view = f".view(-1{tail})" if tail else ""
    buffer = c.buffer(f"torch.tensor({constants(c, shape[axis])}){view}")
    text = c.one_of(
        *("{0} * {1}", "{0} + {1}", "torch.copysign({0}, {1})", "{0}.masked_fill({1} > 1.0, 0.0)"),
        *("torch.where({1} > 1.0, {0}, 0.5)", "torch.maximum({0}, {1})"),
        "torch.atan2({1}, -1.0 - {0}.abs())",
    )
    c.result(text.format(x, buffer))


@step
def with_matrix_buffer(c: Cursor) -> None:
    """A constant over two axes: masks, identities, tables."""
    x = c.operand(lambda shape: len(shape) > 1)
    shape = c.shapes[x]
    rows, columns = shape[-2:]
    text = c.one_of(
        f"torch.eye({rows}, {columns})",
        f"torch.ones({rows}, {columns})",
        f"torch.ones({rows}, {columns}).tril()",
        f"torch.arange({rows * columns}).view({rows}, {columns}) % {2 + c.pick(3)} * 0.5",
        f"torch.ones({rows}, {columns}).roll(1, 0).triu()",
    )
    where = c.buffer(f"({text})") if c.flag(2) else f"({text})"
    c.result(f"{x} {c.one_of('+', '*')} {where}")


@step
def masked_by_position(c: Cursor) -> None:
    x = c.operand(lambda shape: len(shape) > 1)
    c.result(f"{x}.{c.one_of('tril', 'triu')}({c.pick(2)})")


@step
def filled_like(c: Cursor) -> None:
    """A tensor of one number, then written over by nothing."""
    x = c.operand()
    text = c.one_of(
        f"torch.ones_like({x})", f"{x}.new_ones({full(c, x)})", f"torch.full_like({x}, 0.5)"
    )
    c.result(f"{text} * {x}")
