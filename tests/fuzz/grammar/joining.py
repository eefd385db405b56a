"""Pieces along an axis."""

from __future__ import annotations

from tests.fuzz.grammar.registry import full, has_axes, step
from tests.fuzz.scope import Cursor


def _other(c: Cursor, x: str) -> str:
    """Something of the same shape as a variable."""
    shape = c.shapes[x]
    kind = c.one_of("variable", "parameter", "function", "moved", "constant", "zeros")
    if kind == "variable":
        return c.operand(lambda other: other == shape)
    if kind == "parameter":
        return c.parameter(*shape[1:]) + f".expand({full(c, x)})"
    if kind == "function":
        return f"{x}.{c.one_of('tanh', 'square', 'relu')}()"
    if kind == "moved":
        return f"{x}.{c.one_of('flip', 'cumsum')}({c.axis(x)})"
    if kind == "constant":
        count = shape[-1]
        return f"(torch.arange({count}) * 0.5).expand({full(c, x)})"
    return f"torch.zeros({full(c, x)})"


@step
def cat(c: Cursor) -> None:
    """With something of the same shape, along any axis; the batch included."""
    x = c.operand()
    pieces = [x, _other(c, x)]
    pieces = pieces[::-1] if c.flag(2) else pieces
    c.result(f"torch.cat([{', '.join(pieces)}], {c.axis(x)})")


@step
def cat_with_parameter(c: Cursor) -> None:
    """Positions, class tokens, embeddings of nodes beside features."""
    x = c.operand(has_axes(2))
    shape = list(c.shapes[x])
    axis = 1 + c.pick(len(shape) - 1)
    shape[axis] = c.one_of(1, 2, 3)
    token = c.parameter(*shape[1:])
    pieces = [x, f"{token}.expand({full(c, x, shape)})"]
    pieces = pieces[::-1] if c.flag(2) else pieces
    c.result(f"torch.cat([{', '.join(pieces)}], {axis})")


@step
def cat_of_two(c: Cursor) -> None:
    """Two variables of the same sizes but along one axis."""
    x = c.operand()
    shape = c.shapes[x]
    axis = c.axis(x)

    def fits(other: tuple[int, ...]) -> bool:
        rest = other[:axis] + other[axis + 1 :]
        return len(other) == len(shape) and rest == shape[:axis] + shape[axis + 1 :]

    c.result(f"torch.cat([{x}, {c.operand(fits)}], {axis})")


@step
def stack(c: Cursor) -> None:
    x = c.operand(has_axes(1, 4))
    pieces = [x, _other(c, x)]
    if c.flag(3):
        pieces.append(_other(c, x))
    axis = c.pick(len(c.shapes[x]) + 1)
    stacked = f"torch.stack([{', '.join(pieces)}], {axis})"
    after = c.one_of("", f".sum({axis})", f".mean({axis})", f".amax({axis})")
    c.result(stacked + after)


@step
def joined_and_reduced(c: Cursor) -> None:
    """Along one axis together, then reduced along it or mixed."""
    x = c.operand(has_axes(2))
    axis = c.axis(x)
    joined = f"torch.cat([{x}, {_other(c, x)}], {axis})"
    c.result(f"{joined}.{c.one_of('sum', 'logsumexp', 'amax')}({axis})")
