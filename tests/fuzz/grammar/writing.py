"""Writes in place, into views of zeros and of activations."""

from __future__ import annotations

from tests.fuzz.grammar.registry import at, full, has_axes, step, without
from tests.fuzz.scope import Cursor


def _place(c: Cursor, x: str) -> str:
    """A part of a variable."""
    axis = c.axis(x, 2)
    size = c.shapes[x][axis]
    cut = 1 + c.pick(size - 1)
    text = c.one_of(f"{cut}:", f":{cut}", "::2", f"{cut}", "0", "-1", str(c.order(size)[:2]))
    return at(axis, text)


@step
def into_zeros(c: Cursor) -> None:
    """A variable inside a larger tensor of zeros."""
    x = c.operand()
    shape = list(c.shapes[x])
    axis = 1 + c.pick(len(shape) - 1) if len(shape) > 1 else 0
    size = shape[axis]
    before = c.pick(3)
    shape[axis] += before + c.pick(2) + 1
    kind = c.one_of("zeros", "ones")
    sizes = full(c, x, shape) if axis else ", ".join(map(str, shape))
    target = c.result(f"torch.{kind}({sizes})")
    place = f"{target}{at(axis, f'{before}:{before + size}')}"
    c.line(f"{place} {c.one_of('=', '+=')} {x}")


@step
def write_part(c: Cursor) -> None:
    """A part of a copy changes."""
    x = c.operand()
    target = c.result(f"{x}.{c.one_of('clone()', 'mul(1.0)', 'contiguous().clone()')}")
    place = _place(c, x)
    text = c.one_of(
        "{0}{1} += 1.0",
        "{0}{1} *= 0.5",
        "{0}{1} = 0.0",
        "{0}{1} = {0}{1}.tanh()",
        "{0}{1} = {0}{1}.flip(-1)",
    )
    c.line(text.format(target, place))


@step
def write_parameter(c: Cursor) -> None:
    """A parameter is written to, or added to, a position."""
    x = c.operand(has_axes(2))
    shape = c.shapes[x]
    axis = c.axis(x)
    rest = without(shape, 0, axis)
    target = c.result(f"{x}.clone()")
    where = at(axis, c.one_of(0, -1))
    value = c.parameter(*rest) if rest else "0.5"
    c.line(f"{target}{where} {c.one_of('=', '+=', '*=')} {value}")


@step
def write_in_place(c: Cursor) -> None:
    """What others see changes."""
    x = c.operand()
    place = _place(c, x)
    c.line(
        c.one_of(
            "{0}{1} *= 0.5", "{0}{1} += 1.0", "{0}.relu_()", "{0}.mul_({0})", "{0}.tanh_()"
        ).format(x, place)
    )


@step
def write_variable(c: Cursor) -> None:
    """One variable is written over a part of another."""
    x = c.operand(has_axes(2))
    axis = c.axis(x)
    rest = without(c.shapes[x], axis)
    y = c.operand(lambda shape: shape == rest)
    target = c.result(f"{x}.clone()")
    c.line(f"{target}{at(axis, c.one_of(0, -1))} {c.one_of('=', '+=')} {y}")


@step
def written_by_index(c: Cursor) -> None:
    x = c.operand()
    axis = c.axis(x)
    size = c.shapes[x][axis]
    index = c.order(size)
    text = c.one_of(
        "torch.zeros_like({0}).index_add({1}, torch.tensor({2}), {0})",
        "torch.zeros_like({0}).index_copy({1}, torch.tensor({2}), {0})",
        "{0}.index_fill({1}, torch.tensor({3}), 0.5)",
        "torch.zeros_like({0}).scatter_add({1}, {0}.argsort({1}), {0})",
        "{0}.scatter({1}, {0}.argmax({1}, keepdim=True), 0.0)",
        "torch.zeros_like({0}).index_add({1}, torch.tensor({4}), {0})",
    )
    c.result(text.format(x, axis, index, index[:1], [i // 2 for i in range(size)]))


@step
def written_in_a_loop(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    axis = c.axis(x)
    size = c.shapes[x][axis]
    target = c.result(f"torch.zeros_like({x})")
    c.line(f"for t in range({size}):")
    place = c.one_of("t", f"{size - 1} - t")
    after = c.one_of("* 0.5", "* (t + 1)", f"+ {target}{at(axis, 't - 1')}")
    c.line(f"    {target}{at(axis, place)} = {x}{at(axis, 't')} {after}")
