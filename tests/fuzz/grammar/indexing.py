"""Look-ups by constants and by data."""

from __future__ import annotations

from tests.fuzz.grammar.registry import at, has_axes, step
from tests.fuzz.scope import Cursor


def _indices(c: Cursor, size: int, count: int | None = None) -> list[int]:
    kind = c.one_of("permutation", "repeats", "shift")
    if count is None and kind == "permutation":
        return c.order(size)
    if count is None and kind == "shift":
        return [(i + 1) % size for i in range(size)]
    return [c.pick(size) for _ in range(count or 2 + c.pick(3))]


@step
def constant_index(c: Cursor) -> None:
    x = c.operand()
    axis = c.axis(x)
    index = _indices(c, c.shapes[x][axis])
    text = c.one_of(f"{x}{at(axis, index)}", f"{x}.index_select({axis}, torch.tensor({index}))")
    c.result(text)


@step
def neighbour_table(c: Cursor) -> None:
    """A table of indices along an axis, one row per place."""
    x = c.operand(has_axes(1, 4))
    axis = c.axis(x)
    size = c.shapes[x][axis]
    if c.flag(2):
        table = [[(i + j) % size for j in range(2)] for i in range(size)]
    else:
        table = [c.order(size) for _ in range(2)]
    after = c.one_of("", f".sum({axis})", f".mean({axis + 1})")
    c.result(f"{x}{at(axis, f'torch.tensor({table})')}{after}")


@step
def parameter_by_table(c: Cursor) -> None:
    """A parameter read several times by a constant: circulant and Toeplitz matrices, biases."""
    n = c.size()
    if c.flag(2):
        vector = c.parameter(n)
        table = [[(i - j) % n for j in range(n)] for i in range(n)]
    else:
        vector = c.parameter(2 * n - 1)
        table = [[i - j + n - 1 for j in range(n)] for i in range(n)]
    c.result(f"{vector}[torch.tensor({table})]")


@step
def embedded_positions(c: Cursor) -> None:
    """A table of positions, added or beside."""
    x = c.operand(has_axes(2))
    size, width = c.shapes[x][-2:]
    table = c.parameter(size + c.pick(2), width)
    c.result(f"{x} {c.one_of('+', '*')} F.embedding(torch.arange({size}), {table})")


@step
def two_constant_indices(c: Cursor) -> None:
    x = c.operand(has_axes(2, 4))
    rows, columns = c.shapes[x][-2:]
    count = 2 + c.pick(3)
    one, two = ([c.pick(n) for _ in range(count)] for n in (rows, columns))
    c.result(f"{x}[..., {one}, {two}]")


@step
def gathered_by_constant(c: Cursor) -> None:
    x = c.operand()
    axis = c.axis(x)
    size = c.shapes[x][axis]
    view = [1] * len(c.shapes[x])
    view[axis] = -1
    index = f"torch.tensor({c.order(size)}).view({view}).expand({x}.shape)"
    c.result(f"{x}.gather({axis}, {index})")


@step
def row_by_data(c: Cursor) -> None:
    """Rows of a table, one per unit or per element of the batch."""
    x = c.operand(has_axes(1, 3))
    rows, width = c.one_of(2, 3), c.size()
    table = c.parameter(rows, width)
    index = c.one_of(
        f"({x} > 0).long()",
        f"{x}.argmax({c.axis(x)}).clamp(max={rows - 1})",
        f"(({x} > 0).long() + ({x} > 0.5).long()).clamp(max={rows - 1})",
    )
    text = c.one_of(f"{table}[{index}]", f"F.embedding({index}, {table})")
    c.result(text)


@step
def along_axis_by_data(c: Cursor) -> None:
    x = c.operand()
    axis = c.axis(x, 2)
    text = c.one_of(
        "{0}.gather({1}, {0}.argmax({1}, keepdim=True))",
        "{0}.topk(2, {1}).values",
        "{0}.gather({1}, {0}.argsort({1}))",
        "{0}.topk(2, {1}, sorted=False).values",
        "torch.take_along_dim({0}, {0}.argmin({1}, keepdim=True), {1})",
        "{0}.sort({1}, descending=True).values",
        "{0} * F.one_hot({0}.argmax(-1), {0}.shape[-1])",
    )
    c.result(text.format(x, axis))


@step
def picked_by_other(c: Cursor) -> None:
    """Positions of one variable by what another holds."""
    x = c.operand(has_axes(1, 3))
    y = c.operand(has_axes(1, 3))
    axis = c.axis(x)
    if c.flag(2):
        c.result(f"{x}{at(axis, f'({y} > 0).long()')}" if c.shapes[x][axis] > 1 else x)
    else:
        c.result(
            f"{x}[torch.arange({x}.shape[0]), {x}.argmax(1)]"
            if len(c.shapes[x]) == 2
            else f"{x}[torch.arange({x}.shape[0]), {x}.argmax(1).flatten(1)[:, 0]]"
        )
