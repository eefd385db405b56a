"""Structures of several operators: attention, recurrences, branches."""

from __future__ import annotations

from tests.fuzz.grammar.registry import ending, has_axes, step, without
from tests.fuzz.scope import Cursor


@step
def attention(c: Cursor) -> None:
    """Heads; one projection or three."""
    x = c.operand(has_axes(3, 3))
    _, tokens, width = c.shapes[x]
    heads, dims = c.one_of(1, 2, 3), c.one_of(2, 3)
    inner = heads * dims
    if c.flag(2):
        projected = c.local(f"F.linear({x}, {c.parameter(3 * inner, width)})")
        q, k, v = (f"{projected}[..., {i * inner}:{(i + 1) * inner}]" for i in range(3))
    else:
        q, k, v = (f"F.linear({x}, {c.parameter(inner, width)})" for _ in range(3))
    q, k, v = (c.local(f"{t}.unflatten(-1, ({heads}, {dims})).transpose(1, 2)") for t in (q, k, v))
    if c.flag(2):
        mixed = c.local(f"F.scaled_dot_product_attention({q}, {k}, {v})")
    else:
        bias = f" + {c.parameter(heads, 1, tokens)}" if c.flag(2) else ""
        mixed = c.local(f"({q} @ {k}.mT{bias}).softmax(-1) @ {v}")
    c.result(f"{mixed}.transpose(1, 2).flatten(2)")


@step
def grouped_attention(c: Cursor) -> None:
    """Several heads of queries for one of keys and values; masked at times."""
    x = c.operand(has_axes(3, 3))
    width, groups, per_group, dims = c.shapes[x][-1], 2, c.one_of(2, 3), 2
    weight = f"F.linear({x}, {c.parameter(groups * per_group * dims, width)})"
    query = c.local(f"{weight}.unflatten(-1, ({groups * per_group}, {dims})).transpose(1, 2)")
    few = [f"F.linear({x}, {c.parameter(groups * dims, width)})" for _ in range(2)]
    key, value = (c.local(f"{t}.unflatten(-1, ({groups}, {dims})).transpose(1, 2)") for t in few)
    causal = c.one_of("", ", is_causal=True")
    attended = f"F.scaled_dot_product_attention({query}, {key}, {value}{causal}, enable_gqa=True)"
    c.result(f"{attended}.transpose(1, 2).flatten(2)")


@step
def attention_of_variables(c: Cursor) -> None:
    x = c.operand(has_axes(3, 4))
    c.result(f"({x} @ {x}.mT).softmax(-1) @ {x}")


@step
def recurrence(c: Cursor) -> None:
    x = c.operand(has_axes(3, 3))
    _, tokens, width = c.shapes[x]
    hidden = c.size()
    enter, around = c.parameter(hidden, width), c.parameter(hidden, hidden)
    h = c.local(f"{x}.new_zeros({x}.shape[0], {hidden})")
    states = f"t{c.step.uid}_all"
    c.line(f"{states} = []")
    c.line(f"for t in range({tokens}):")
    c.line(f"    {h} = torch.tanh(F.linear({x}[:, t], {enter}) + F.linear({h}, {around}))")
    c.line(f"    {states}.append({h})")
    c.result(c.one_of(h, f"torch.stack({states}, 1)", f"torch.cat({states}, 1)"))


@step
def cell(c: Cursor) -> None:
    """One step of a GRU or an LSTM."""
    x = c.operand(has_axes(2, 2))
    width, hidden = c.shapes[x][1], c.size()
    start = f"{x}.new_zeros({x}.shape[0], {hidden})"
    if c.flag(2):
        enter, around = c.parameter(3 * hidden, width), c.parameter(3 * hidden, hidden)
        c.result(f"torch.gru_cell({x}, {start} + 0.5, {enter}, {around})")
    else:
        enter, around = c.parameter(4 * hidden, width), c.parameter(4 * hidden, hidden)
        c.result(f"torch.lstm_cell({x}, ({start}, {start} + 0.5), {enter}, {around})[{c.pick(2)}]")


@step
def residual(c: Cursor) -> None:
    x = c.operand()
    width, hidden = c.shapes[x][-1], c.size()
    enter, leave = c.parameter(hidden, width), c.parameter(width, hidden)
    c.result(f"{x} + F.linear(F.linear({x}, {enter}).{c.one_of('relu', 'tanh')}(), {leave})")


@step
def tied_weights(c: Cursor) -> None:
    x = c.operand()
    weight = c.parameter(c.size(), c.shapes[x][-1])
    c.result(f"F.linear(F.linear({x}, {weight}).tanh(), {weight}.mT)")


@step
def offset_and_scale(c: Cursor) -> None:
    """One tensor in several roles: `x * g + b`, then each role on its own."""
    x = c.operand(has_axes(1, 4))
    roles, width = c.one_of(2, 3), c.shapes[x][-1]
    gain, shift = c.parameter(roles, width), c.parameter(roles, width)
    parts = f"t{c.step.uid}"
    c.line(f"{parts} = ({x}.unsqueeze(-2) * {gain} + {shift}).unbind(-2)")
    c.result(f"{parts}[0] {c.one_of('*', '+')} {parts}[1]{c.one_of('.tanh()', '.flip(-1)')}")


@step
def loop_over_parts(c: Cursor) -> None:
    """Each position gets a layer of its own, or a scale."""
    x = c.operand(has_axes(2, 4))
    axis = c.axis(x, 2)
    size, shape = c.shapes[x][axis], c.shapes[x]
    parts = f"t{c.step.uid}"
    c.line(f"{parts} = []")
    c.line(f"for i, part in enumerate({x}.unbind({axis})):")
    if c.flag(2):
        weight = c.parameter(size, without(shape, axis)[-1])
        c.line(f"    {parts}.append(part * {weight}[i])")
    else:
        c.line(f"    {parts}.append(part.tanh() if i % 2 else part * 0.5)")
    c.result(f"torch.stack({parts}, {axis})")


@step
def branch_on_shape(c: Cursor) -> None:
    x = c.operand()
    c.line(f"if {x}.shape[-1] > {c.one_of(2, 3)}:")
    name = f"t{c.step.uid}"
    c.line(f"    {name} = {x}.flip(-1)")
    c.line("else:")
    c.line(f"    {name} = {x}.tanh()")
    c.result(f"{name} {c.one_of('+', '*')} {x}")


@step
def branch_on_data(c: Cursor) -> None:
    """What happens depends on the values of the input, or of units."""
    x = c.operand(has_axes(1, 4))
    asked = c.one_of(f"{x}.sum()", f"{x}.flatten()[0]", f"{x}.amax()", "x.mean()")
    c.line(f"if float({asked}) > {c.one_of('0.1', '0.7')}:")
    name, width = f"t{c.step.uid}", c.shapes[x][-1]
    c.line(f"    {name} = {x}.tanh()")
    c.line("else:")
    text = c.one_of(f"F.linear({x}, {c.parameter(width, width)})", f"{x}.flip(-1)", f"{x} * 0.5")
    c.line(f"    {name} = {text}")
    c.result(name)


@step
def rows_by_data(c: Cursor) -> None:
    """Each row of a batch goes the way that it asks for."""
    x = c.operand(has_axes(2, 3))
    rows, scale = f"t{c.step.uid}", c.parameter(c.shapes[x][-1])
    c.line(f"{rows} = [row * {scale} if bool(row.sum() > 0) else row.sin() for row in {x}]")
    c.result(f"torch.stack({rows})")


@step
def gates(c: Cursor) -> None:
    x = c.operand()
    c.result(f"F.glu({x}, {c.axis(x, 2)})")


@step
def experts(c: Cursor) -> None:
    """A stack of weights, all used, weighted by a gate."""
    x = c.operand(has_axes(2, 3))
    number, width, out = c.one_of(2, 3), c.shapes[x][-1], c.size()
    gate, stack = c.parameter(number, width), c.parameter(number, width, out)
    weights = c.local(f"F.linear({x}, {gate}).softmax(-1)")
    c.result(f'torch.einsum("...e,...i,eio->...o", {weights}, {x}, {stack})')


@step
def pairs(c: Cursor) -> None:
    """Every position with every other."""
    x = c.operand(has_axes(2, 3))
    text = c.one_of(
        "{0}.unsqueeze(-1) {1} {0}.unsqueeze(-2)",
        "({0}.unsqueeze(1) {1} {0}.unsqueeze(2)).square()",
    )
    c.result(text.format(x, c.one_of("-", "*", "+")))


@ending
def mean_of_positions(c: Cursor) -> None:
    """Averaged over all axes but the last, which is contracted."""
    x = c.operand(has_axes(2))
    ndim = len(c.shapes[x])
    pooled = f"{x}.mean({tuple(range(1, ndim - 1))})" if ndim > 2 else x
    c.result(f"{pooled} @ {c.parameter(c.shapes[x][-1], c.size())}")


@ending
def sum_of_everything(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    text = c.one_of("sum(1)", "logsumexp(1)", "amax(1)", "norm(dim=1)")
    c.result(f"{x}.flatten(1).{text}")


@ending
def flat_linear(c: Cursor) -> None:
    x = c.operand(has_axes(2))
    total = 1
    for size in c.shapes[x][1:]:
        total *= size
    c.result(f"F.linear({x}.flatten(1), {c.parameter(c.size(), total)})")
