"""Products that sum over axes."""

from __future__ import annotations

from tests.fuzz.grammar.registry import ending, has_axes, step
from tests.fuzz.scope import Cursor

LETTERS = "abcdefgh"


@ending
def linear(c: Cursor) -> None:
    x = c.operand()
    out = c.size()
    weight = c.parameter(out, c.shapes[x][-1])
    c.result(
        f"F.linear({x}, {weight}, {c.parameter(out)})" if c.flag(2) else f"F.linear({x}, {weight})"
    )


@ending
def einsum_with_parameter(c: Cursor) -> None:
    """Some axes of a raw parameter are summed over, some kept, some new."""
    x = c.operand(has_axes(1, 4))
    shape = c.shapes[x]
    mine = LETTERS[: len(shape)]
    sizes = dict(zip(mine, shape, strict=True))
    common = c.some(range(1 if len(shape) > 1 else 0, len(shape)))
    removed = c.some(common)
    new = LETTERS[len(shape) : len(shape) + c.one_of(1, 0, 2)]
    sizes |= {letter: c.size() for letter in new}
    theirs = [mine[axis] for axis in common] + list(new)
    theirs = [theirs[i] for i in c.order(len(theirs))]
    kept = [letter for axis, letter in enumerate(mine) if axis not in removed] + list(new)
    if c.flag(3):
        kept = [kept[i] for i in c.order(len(kept))]
    parameter = c.parameter(*(sizes[letter] for letter in theirs))
    c.result(f'torch.einsum("{mine},{"".join(theirs)}->{"".join(kept)}", {x}, {parameter})')


@ending
def all_axes_with_parameter(c: Cursor) -> None:
    """Every axis but the first is summed over with a raw parameter."""
    x = c.operand(has_axes(2, 4))
    out = c.size()
    parameter = c.parameter(*c.shapes[x][1:], out)
    c.result(f"torch.tensordot({x}, {parameter}, {len(c.shapes[x]) - 1})")


@step
def einsum_of_two(c: Cursor) -> None:
    """Two variables that share some axes of the same sizes."""
    x = c.operand(has_axes(1, 4))
    y = c.operand(has_axes(1, 4))
    mine = list(LETTERS[: len(c.shapes[x])])
    theirs = []
    for position, size in enumerate(c.shapes[y]):
        fits = [
            letter
            for letter, other in zip(mine, c.shapes[x], strict=True)
            if other == size and letter not in theirs
        ]
        if fits and not c.flag(4):
            theirs.append(c.one_of(*fits))
        else:
            theirs.append("ijkl"[position])
    everything = list(dict.fromkeys([*mine, *theirs]))
    kept = [letter for letter in everything if letter == "a" or not c.flag(3)]
    text = f"{''.join(mine)},{''.join(theirs)}->{''.join(kept)}"
    c.result(f'torch.einsum("{text}", {x}, {y}) / {len(everything)}')


@step
def convolution(c: Cursor) -> None:
    x = c.operand(has_axes(3, 4))
    shape = c.shapes[x]
    dims = len(shape) - 2
    channels = shape[1]
    groups = c.one_of(*[g for g in (1, channels, 2, 3) if channels % g == 0])
    out = groups * c.one_of(1, 2, 3) if groups > 1 else c.size()
    kernel = [c.one_of(1, 2, 3) if size > 2 else 1 for size in shape[2:]]
    bias = f", {c.parameter(out)}" if c.flag(2) else ""
    if c.flag(4):
        weight = c.parameter(channels, out // groups, *kernel)
        options = f", groups={groups}" if groups > 1 else ""
        c.result(f"F.conv_transpose{dims}d({x}, {weight}{bias}{options})")
        return
    weight = c.parameter(out, channels // groups, *kernel)
    options = f", groups={groups}" if groups > 1 else ""
    options += ", padding=1" if c.flag(3) else ""
    options += ", stride=2" if c.flag(5) else ""
    c.result(f"F.conv{dims}d({x}, {weight}{bias}{options})")


@step
def matmul_parameter_left(c: Cursor) -> None:
    """Mixes the axis before the last."""
    x = c.operand(has_axes(2))
    weight = c.parameter(c.size(), c.shapes[x][-2])
    c.result(f"{weight} @ {x}")


@step
def gram(c: Cursor) -> None:
    x = c.operand(has_axes(2, 4))
    c.result(
        f"{x} @ {x}.mT / {c.shapes[x][-1]}"
        if not c.flag(2)
        else f"{x}.mT @ {x} / {c.shapes[x][-2]}"
    )


@step
def bilinear(c: Cursor) -> None:
    x = c.operand()
    y = c.operand(lambda shape: shape[:-1] == c.shapes[x][:-1])
    weight = c.parameter(c.size(), c.shapes[x][-1], c.shapes[y][-1])
    c.result(f"F.bilinear({x}, {y}, {weight})")


@step
def of_parameters(c: Cursor) -> None:
    """A parameter combined with others before anything reads it."""
    kind = c.one_of("outer", "low rank", "symmetric", "soft", "normed", "kron", "stacked")
    n, m = c.size(), c.size()
    if kind == "outer":
        c.result(f"{c.parameter(n)}[:, None] {c.one_of('*', '+')} {c.parameter(m)}")
    elif kind == "low rank":
        c.result(f"{c.parameter(n, 2)} @ {c.parameter(2, m)} + {c.parameter(n, m)}")
    elif kind == "symmetric":
        weight = c.parameter(n, n)
        c.result(f"{weight} + {weight}.mT")
    elif kind == "soft":
        c.result(f"{c.parameter(n, m)}.softmax({c.one_of(-1, 0)})")
    elif kind == "normed":
        weight = c.parameter(n, m)
        c.result(f"{weight} / {weight}.norm(dim={c.one_of(1, 0)}, keepdim=True)")
    elif kind == "kron":
        c.result(f"torch.kron({c.parameter(2, 2)}, {c.parameter(2, m)})")
    else:
        c.result(f"torch.stack([{c.parameter(n)}, {c.parameter(n)}], {c.one_of(0, 1)})")


@step
def parameter(c: Cursor) -> None:
    """A raw parameter as a variable; in sizes that others have."""
    x = c.operand()
    shape = list(c.shapes[x][1:])
    if not shape or c.flag(3):
        shape.append(c.size())
    if c.flag(3):
        shape.insert(0, c.one_of(2, 3))
    c.result(c.parameter(*shape))
