"""Movements of elements."""

from __future__ import annotations

import math

from tests.fuzz.grammar.registry import at, full, has_axes, step
from tests.fuzz.scope import Cursor


def _factors(n: int) -> list[int]:
    return [f for f in range(2, n) if n % f == 0]


@step
def transpose(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    ndim = len(c.shapes[x])
    first = 1 if ndim > 2 and not c.flag(5) else 0
    one = first + c.pick(ndim - first)
    two = ndim - 1 - c.pick(ndim - first)
    c.result(f"{x}.transpose({one}, {two})")


@step
def permute(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    ndim = len(c.shapes[x])
    order = c.order(ndim) if c.flag(4) else [0, *(1 + i for i in c.order(ndim - 1))]
    c.result(f"{x}.permute({order})")


@step
def merge(c: Cursor) -> None:
    """Adjacent axes become one."""
    x = c.operand(has_axes(2))
    ndim = len(c.shapes[x])
    start = c.pick(ndim - 1)
    start = ndim - 2 - start
    c.result(f"{x}.flatten({start}, {start + 1 + c.pick(ndim - start - 1)})")


@step
def split_axis(c: Cursor) -> None:
    x = c.operand(has_axes(1, 4))
    axis = c.axis(x, 4)
    size = c.shapes[x][axis]
    factor = c.one_of(*_factors(size))
    c.result(f"{x}.unflatten({axis}, ({size // factor}, {factor}))")


@step
def reshape_plainly(c: Cursor) -> None:
    """All axes but the first get new sizes of the same product, wherever borders fall."""
    x = c.operand(has_axes(2))
    total = math.prod(c.shapes[x][1:])
    one = c.one_of(*(_factors(total) or [total]))
    c.result(f"{x}.reshape({x}.shape[0], {one}, {total // one})")


@step
def reshape_everything(c: Cursor) -> None:
    x = c.operand()
    total = math.prod(c.shapes[x])
    one = c.one_of(*(_factors(total) or [total]))
    c.result(f"{x}.reshape(-1, {one})")


@step
def chunk(c: Cursor) -> None:
    x = c.operand()
    c.unpacked(*_chunked(c, x))


def _chunked(c: Cursor, x: str) -> tuple[str, int]:
    axis = c.axis(x, 2)
    size = c.shapes[x][axis]
    if c.flag(2):
        parts = c.one_of(*[p for p in (2, 3) if p <= size])
        count = -(-size // -(-size // parts))
        return f"{x}.chunk({parts}, {axis})", count
    first = 1 + c.pick(size - 1)
    return f"{x}.split([{first}, {size - first}], {axis})", 2


@step
def chunk_and_combine(c: Cursor) -> None:
    """Both parts of an axis meet: gates."""
    x = c.operand()
    axes = [a for a, size in enumerate(c.shapes[x]) if size % 2 == 0 and a]
    axis = c.one_of(*reversed(axes)) if axes else c.pick(0)
    one, two = (f"t{c.step.uid}_{name}" for name in "ab")
    c.line(f"{one}, {two} = {x}.chunk(2, {axis})")
    c.result(f"{one} {c.one_of('*', '+', '-')} {two}{c.one_of('', '.sigmoid()', '.flip(-1)')}")


@step
def unbind(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    axis = c.axis(x)
    c.unpacked(f"{x}.unbind({axis})", c.shapes[x][axis])


@step
def unbind_and_combine(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    axis = c.axis(x, 2)
    parts = f"t{c.step.uid}"
    c.line(f"{parts} = {x}.unbind({axis})")
    c.result(f"{parts}[0] {c.one_of('*', '+', '-')} {parts}[-1]")


@step
def select(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    axis = c.axis(x)
    c.result(f"{x}.select({axis}, {c.one_of(0, -1, c.shapes[x][axis] // 2)})")


@step
def sliced(c: Cursor) -> None:
    """A part of an axis; not one row that is several rows of another batch."""
    x = c.operand()
    axis = c.axis(x, 2)
    size = c.shapes[x][axis]
    cut = 1 + c.pick(size - 1)
    few = (f":{cut}", "-1:")
    several = (f"{cut}:" if size - cut > 1 else ":", "::2", "1::2" if size > 3 else ":", ":-1")
    text = c.one_of(*few, *(several if size > 2 else ()))
    c.result(f"{x}{at(axis, text)}")


@step
def sliced_against_each_other(c: Cursor) -> None:
    """Neighbours along an axis meet."""
    x = c.operand()
    axis = c.axis(x, 2)
    one, two = (at(axis, text) for text in c.one_of(("1:", ":-1"), (":1", ":"), (":-1", "1:")))
    c.result(f"{x}{one} {c.one_of('-', '*', '+')} {x}{two}")


@step
def expand(c: Cursor) -> None:
    x = c.operand(has_axes(1, 4))
    ndim = len(c.shapes[x])
    axis = ndim - c.pick(ndim + 1)
    sizes = ["-1"] * (ndim + 1)
    sizes[axis] = str(c.size())
    c.result(f"{x}.unsqueeze({axis}).expand({', '.join(sizes)})")


@step
def expand_to_batch(c: Cursor) -> None:
    """What does not depend on the batch is repeated for each element of it."""
    x = c.operand(has_axes(1, 3))
    sizes = ", ".join(["x.shape[0]", *map(str, c.shapes[x])])
    c.result(f"{x}.expand({sizes})")


@step
def squeeze(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    ones = [a for a, size in enumerate(c.shapes[x]) if size == 1]
    c.result(
        f"{x}.squeeze({c.one_of(*ones)})"
        if ones
        else f"{x}.unsqueeze({1 + c.pick(len(c.shapes[x]))})"
    )


@step
def windows(c: Cursor) -> None:
    x = c.operand(has_axes(1, 4))
    axis = c.axis(x, 2)
    size = c.one_of(*range(2, c.shapes[x][axis] + 1))
    c.result(f"{x}.unfold({axis}, {size}, {1 + c.pick(2)})")


@step
def flip(c: Cursor) -> None:
    x = c.operand()
    c.result(f"{x}.flip({c.axis(x, 2)})")


@step
def roll(c: Cursor) -> None:
    x = c.operand()
    shift = 1 + c.pick(3)
    if c.flag(4):
        c.result(f"{x}.roll({shift})")
    else:
        c.result(f"{x}.roll({shift}, {c.axis(x, 2)})")


@step
def moved_and_combined(c: Cursor) -> None:
    """An axis meets itself in another order."""
    x = c.operand()
    axis = c.axis(x, 2)
    size = c.shapes[x][axis]
    index = at(axis, c.order(size))
    moved = c.one_of(f".flip({axis})", f".roll(1, {axis})", index, f".roll({size // 2}, {axis})")
    c.result(f"{x} {c.one_of('+', '*', '-')} {x}{moved}")


@step
def repeat(c: Cursor) -> None:
    x = c.operand()
    shape = c.shapes[x]
    axis = c.axis(x)
    times = 2 + c.pick(2)
    if c.flag(2):
        c.result(f"{x}.repeat_interleave({times}, {axis})")
    else:
        c.result(f"{x}.repeat({[times if a == axis else 1 for a in range(len(shape))]})")


@step
def diagonal(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    ndim = len(c.shapes[x])
    c.result(f"{x}.diagonal({c.one_of(0, 1)}, {ndim - 2}, {ndim - 1})")


@step
def padded(c: Cursor) -> None:
    x = c.operand()
    text = c.one_of(
        f"F.pad({x}, (1, 0))",
        f"F.pad({x}, (0, 1))",
        f"F.pad({x}, (1, 1), value=0.5)",
        f"F.pad({x}, (-1, 1))",
    )
    c.result(text)


@step
def images(c: Cursor) -> None:
    x = c.operand(has_axes(4, 4))
    text = c.one_of(
        *("F.pixel_unshuffle({}, 2)", "F.pixel_shuffle({}, 2)", "F.unfold({}, 2)"),
        *("F.interpolate({}, scale_factor=2.0)", "F.pad({}, (1, 1, 0, 0), mode='reflect')"),
    )
    c.result(text.format(x))


@step
def shuffle(c: Cursor) -> None:
    """The shuffle of channels between grouped convolutions."""
    x = c.operand(has_axes(2, 4))
    axis = c.one_of(*[a for a, size in enumerate(c.shapes[x]) if _factors(size) and a] or [0])
    size = c.shapes[x][axis]
    groups = c.one_of(*_factors(size))
    split = f"{x}.unflatten({axis}, ({groups}, {size // groups}))"
    c.result(f"{split}.transpose({axis}, {axis + 1}).flatten({axis}, {axis + 1})")


@step
def zeros_beside(c: Cursor) -> None:
    """Zeros of the shape of a variable, beside it."""
    x = c.operand()
    axis = c.axis(x)
    pieces = [x, f"torch.zeros({full(c, x)})"]
    pieces = pieces[::-1] if c.flag(2) else pieces
    c.result(f"torch.cat([{', '.join(pieces)}], {axis})")
