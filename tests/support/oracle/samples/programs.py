"""Several operators that work together: where a rule that is right by itself may mislead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.oracle.sample import Sample, complexes, given, indices, p, program, statistics


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def positions(*shape: int) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).view(shape)


# Selecting and joining ------------------------------------------------------------------------


def gated_by_first(x: Tensor) -> Tensor:
    return x * x[:1]


def gated_by_number(x: Tensor) -> Tensor:
    return x * x[0]


def gated_by_item(x: Tensor) -> Tensor:
    return x * x[0].item()


def gated_by_part(x: Tensor) -> Tensor:
    return x * x[:2].sum()


def gated_by_column(x: Tensor) -> Tensor:
    return x * x[:, -1:]


def chosen_by_constant(x: Tensor) -> Tensor:
    return x * x[torch.tensor([1])]


def weighted_apart(x: Tensor) -> Tensor:
    first, second, third = x.unbind(0)
    return first + 2 * second + 3 * third


def exchanged_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second, first], 1)


def glu_by_hand(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * gate.sigmoid()


def one_part_squared(x: Tensor) -> Tensor:
    first, second = x.split([2, 3], 1)
    return torch.cat([first.square(), second], 1)


def activations_apart(x: Tensor) -> Tensor:
    return torch.cat([F.relu(x[:, :2]), F.gelu(x[:, 2:])], 1)


_SELECTING = [
    program("x * x[:1]", gated_by_first, p(4)),
    program("x * x[0]", gated_by_number, p(4)),
    program("x * x[0].item()", gated_by_item, p(4)),
    program("x * sum(x[:2])", gated_by_part, p(4)),
    program("x * x[:, -1:]", gated_by_column, p(3, 4)),
    program("x * x[[1]]", chosen_by_constant, p(4)),
    program("1 x[0] + 2 x[1] + 3 x[2]", weighted_apart, p(3, 4)),
    program("cat of exchanged halves", exchanged_halves, p(3, 4), split={"x0": (3, 2, 2)}),
    program("chunk, value times gate", glu_by_hand, p(3, 4), split={"x0": (3, 2, 2)}),
    program("glu", lambda x: F.glu(x, 0), p(4, 3), split={"x0": (2, 2, 3)}),
    program("one part squared", one_part_squared, p(3, 5)),
    program("relu and gelu of parts", activations_apart, p(3, 5)),
]


# A tensor that meets itself -------------------------------------------------------------------


def both_activations(x: Tensor) -> Tensor:
    return torch.cat([F.relu(x), F.gelu(x)], 1)


UNREAD = "elements that nothing reads stay where they are"
RARE = "what commutes with an exchange is given up"
COPIES = "equal pieces of a concatenation stay in their order"
SORTED = "an axis that is sorted is exchanged alike in all rows, or pinned"
RENAMED = "the positions of an axis that is searched are exchanged alike in all rows"
WINDOWS = "elements of overlapping windows are pinned"

_WITH_ITSELF = [
    program("cat([relu(x), gelu(x)])", both_activations, p(2, 3), split={"out0": (2, 2, 3)}),
    program(
        "cat([x, x])",
        lambda x: torch.cat([x, x], 1),
        p(2, 3),
        missing={"*": COPIES},
        split={"out0": (2, 2, 3)},
    ),
    program(
        "cat([x, x.flip])", lambda x: torch.cat([x, x.flip(1)], 1), p(2, 3), missing={"*": COPIES}
    ),
    program("x + x.roll", lambda x: x + x.roll(1, 1), p(2, 3), missing={"*": RARE}),
    program("x + x.flip", lambda x: x + x.flip(1), p(2, 4), missing={"*": RARE}),
    program("x + x.t()", lambda x: x + x.t(), p(3, 3), missing={"*": RARE}),
    program("x @ x.t()", lambda x: x @ x.t(), p(3, 4)),
    program("x @ x", lambda x: x @ x, p(3, 3)),
    program("x * x.diagonal()", lambda x: x * x.diagonal(), p(3, 3)),
    program(
        "diag of x @ y",
        lambda x, y: (x @ y).diagonal(),
        p(3, 4),
        p(4, 3),
        missing={"*": "each row is summed by itself: nothing but the diagonal is used"},
    ),
    program("outer of x with itself", lambda x: x[:, None] - x[None], p(4)),
    program("repeat and meet", lambda x: x.repeat(1, 2) * positions(6), p(2, 3)),
    program("x * x.repeat_interleave", lambda x, y: x.repeat_interleave(2, 0) * y, p(3), p(6)),
    program("max and its index", lambda x: x * x.argmax(1, keepdim=True), p(3, 4)),
    program(
        "sort and gather back", lambda x: x.gather(1, x.argsort(1)), p(3, 4), missing={"*": SORTED}
    ),
    program(
        "masked by the topmost",
        lambda x: x * (x >= x.topk(2, 1)[0][:, -1:]),
        p(3, 4),
        missing={"*": SORTED},
    ),
    program("windows", lambda x: x.unfold(1, 2, 1).sum(1), p(2, 4), missing={"*": WINDOWS}),
    program("windows of an activation", lambda x: x.relu().unfold(0, 2, 1), p(4)),
    program("windows that drop the last", lambda x: x.unfold(0, 3, 2), p(6)),
]


# Writing --------------------------------------------------------------------------------------


def written(make: object, *writes: object) -> object:
    """Build a tensor, apply writes to it, give it back."""

    def call(*operands: Tensor) -> Tensor:
        tensor = make(*operands)  # type: ignore[operator]
        for write in writes:
            write(tensor, *operands)  # type: ignore[operator]
        return tensor

    return call


def copy_of(x: Tensor, *rest: Tensor) -> Tensor:
    return x.clone()


def zeros_of(*shape: int) -> object:
    return lambda *operands: zeros(*shape)


def behind_a_view(x: Tensor) -> Tensor:
    """A view made before a write through another view."""
    copy = x.clone()
    view = copy.t()
    copy[:, 0].mul_(2)
    return view * 1


def view_of_view(x: Tensor, y: Tensor) -> Tensor:
    copy = x.clone()
    copy.view(3, 2, 2)[:, 1].add_(y)
    return copy


def swapped_in_place(x: Tensor) -> Tensor:
    copy = x.clone()
    copy[:, :2], copy[:, 2:] = x[:, 2:], x[:, :2]
    return copy


def grown(x: Tensor) -> Tensor:
    """A table that is filled row by row."""
    table = zeros(3, 4)
    for row in range(3):
        table[row] = x * (row + 1)
    return table


def expanded_then_written(x: Tensor, y: Tensor) -> Tensor:
    table = x.expand(3, 4).contiguous()
    table += y
    return table


def masked_write(x: Tensor) -> Tensor:
    copy = x.clone()
    copy[copy < 0] = 0.5
    return copy


def listed(x: Tensor, y: Tensor) -> Tensor:
    copy = x.clone()
    torch._foreach_add_([copy], [y])
    return copy


_WRITING = [
    program("zeros[:, :2] = x", written(zeros_of(3, 4), lambda t, x: t[:, :2].copy_(x)), p(3, 2)),
    program("zeros[0] = x", written(zeros_of(3, 4), lambda t, x: t[0].copy_(x)), p(4)),
    program("zeros[:] = x", written(zeros_of(3, 4), lambda t, x: t[:].copy_(x)), p(3, 4)),
    program("zeros[:] = row", written(zeros_of(3, 4), lambda t, x: t[:].copy_(x)), p(4)),
    program(
        "zeros[1, 2] = x",
        written(zeros_of(3, 4), lambda t, x: t[1, 2].copy_(x)),
        p(),
        missing={"*": "what is written to is told apart by rows and columns"},
    ),
    program(
        "zeros_like(x)[1:] = y",
        lambda x: written_part(torch.zeros_like(x), x),
        p(3, 4),
        missing={"*": UNREAD},
    ),
    program("x[:1] = y", written(copy_of, lambda t, x, y: t[:1].copy_(y)), p(4), p(1)),
    program("x[0] *= 2", written(copy_of, lambda t, x: t[0].mul_(2)), p(3, 4)),
    program(
        "x[0] = 0",
        written(copy_of, lambda t, x: t[0].zero_()),
        p(3, 4),
        missing={"*": "what is overwritten before it is read belongs to no class"},
    ),
    program("x[:, 1:] += y", written(copy_of, lambda t, x, y: t[:, 1:].add_(y)), p(3, 4), p(3, 3)),
    program("a view behind a write", behind_a_view, p(3, 4)),
    program("a write to a view of a view", view_of_view, p(3, 4), p(3, 2)),
    program(
        "swapped in place",
        swapped_in_place,
        p(3, 4),
        split={"x0": (3, 2, 2)},
        missing={"*": "the two halves move alike, as they meet in one tensor and its copy"},
    ),
    program("a table filled row by row", grown, p(4)),
    program("expanded, then written", expanded_then_written, p(4), p(3, 1)),
    program("x[x < 0] = number", masked_write, p(3, 4)),
    program("foreach", listed, p(4), p(4), missing={"*": "operators on lists have no rule"}),
    program("diagonal += y", written(copy_of, lambda t, x, y: t.diagonal().add_(y)), p(3, 3), p(3)),
    program(
        "x += x.t()",
        written(copy_of, lambda t, x: t.add_(t.t().clone())),
        p(3, 3),
        missing={"*": RARE},
    ),
    program("relu_ behind a view", written(copy_of, lambda t, x: t[:, :2].relu_()), p(3, 4)),
]


def written_part(tensor: Tensor, x: Tensor) -> Tensor:
    tensor[1:] = x[1:]
    return tensor


# Constants and uniform tensors ----------------------------------------------------------------

POSITIONS = "positions are pinned, also where they hold equal constants"

_CONSTANTS = [
    program("cumsum of an expanded axis", lambda x: x.expand(3, 4).cumsum(1), p(3, 1)),
    program("sort of an expanded axis", lambda x: x.expand(3, 4).sort(dim=1, stable=True), p(3, 1),
            missing={"*": SORTED}),
    program("triangle of an expanded axis", lambda x: x.expand(3, 4).tril(), p(3, 1),
            missing={"*": POSITIONS}),
    program("padding of an expanded axis", lambda x: F.pad(x.expand(3, 4), (1, 1)), p(3, 1),
            missing={"*": POSITIONS}),
    program("windows over an expanded axis", lambda x: F.avg_pool1d(
        x.expand(1, 3, 4), 2, 1, 1), p(1, 3, 1), missing={"*": POSITIONS}),
    program("convolution over an expanded axis", lambda x, w: F.conv1d(
        x.expand(1, 3, 4), w, padding=1), p(1, 3, 1), p(2, 3, 3), missing={"*": POSITIONS}),
    program("causal attention of one query", lambda q, k, v: F.scaled_dot_product_attention(
        q.expand(1, 2, 3, 5), k, v, is_causal=True), p(1, 2, 1, 5), p(1, 2, 3, 5), p(1, 2, 3, 6),
        search=False),
    program("x + positions", lambda x: x + positions(4), p(3, 4)),
    program("x times ones", lambda x: x * torch.ones(4, dtype=torch.float64), p(3, 4)),
    program("masked by positions", lambda x: x.masked_fill(positions(4) > 1, 0.5), p(3, 4),
            missing={"*": POSITIONS}),
    program("zeros joined", lambda x: torch.cat([x, zeros(3, 2)], 1), p(3, 4)),
    program("zeros between", lambda x: torch.stack([x, zeros(3, 4), x], 1).flatten(1), p(3, 4),
            split={"out0": (3, 3, 4)}),
    program("input joined", lambda x, y: torch.cat([x, y], 0), p(3, 4), given(1, 4)),
    program("class token", lambda token, x, w: torch.cat(
        [token.expand(2, 1, 4), x @ w], 1), p(1, 1, 4), given(2, 3, 2), p(2, 4)),
]  # fmt: skip


# Products, heads, groups ----------------------------------------------------------------------


def rotary(x: Tensor, w: Tensor) -> Tensor:
    y = (x @ w).view(2, 3, 4)
    angle = positions(2)[:, None, None] * torch.tensor([1.0, 0.3], dtype=torch.float64)
    first, second = y.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotary_by_complex(x: Tensor, w: Tensor) -> Tensor:
    y = torch.view_as_complex((x @ w).view(2, 3, 2, 2))
    angle = positions(2)[:, None, None] * torch.tensor([1.0, 0.3], dtype=torch.float64)
    turned = y * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(2)


def fused_qkv(x: Tensor, w: Tensor, o: Tensor) -> Tensor:
    q, k, v = (x @ w).view(3, 3, 2, 2).permute(1, 2, 0, 3).unbind(0)
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1) @ o


def sum_over_heads(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w).view(2, 3, 2).sum(1)


def scale_shared_by_heads(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    return (x @ w).view(2, 3, 2) * scale


def shuffled(x: Tensor) -> Tensor:
    return x.view(2, 2, 3).transpose(1, 2).flatten(1)


def group_norm_by_hand(x: Tensor) -> Tensor:
    y = x.view(2, 2, 3)
    return ((y - y.mean(2, keepdim=True)) / y.std(2, keepdim=True)).flatten(1)


def experts(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("ni,eih,ehd->ned", x, w, v)


_PRODUCTS = [
    program("rotary", rotary, given(2, 3), p(3, 12), search=False),
    program("rotary by complex numbers", rotary_by_complex, given(2, 3), p(3, 12), search=False),
    program("fused qkv", fused_qkv, given(3, 2), p(2, 12), p(4, 2), search=False,
            split={"x1": (2, 3, 2, 2)}),
    program("sum over heads", sum_over_heads, given(2, 2), p(2, 6), split={"x1": (2, 3, 2)},
            missing={"*": "with nothing between two sums, each row is summed by itself"}),
    program("a scale shared by heads", scale_shared_by_heads, given(2, 2), p(2, 6), p(2),
            split={"x1": (2, 3, 2)}),
    program("heads of their own", lambda x, w: (x @ w).view(2, 3, 2), given(2, 2), p(2, 6),
            split={"x1": (2, 3, 2)}),
    program("channel shuffle", shuffled, p(2, 6), split={"x0": (2, 2, 3), "out0": (2, 3, 2)}),
    program("group norm by hand", group_norm_by_hand, p(2, 6),
            split={"x0": (2, 2, 3), "out0": (2, 2, 3)}),
    program("experts in one tensor", experts, given(2, 2), p(3, 2, 4), p(3, 4, 2)),
    program("flatten after convolution", lambda x, w, v: F.conv2d(x, w).flatten(1) @ v,
            given(1, 2, 2, 2), p(3, 2, 1, 1), p(12, 2), split={"x2": (3, 2, 2, 2)}),
    program("einsum over both axes", lambda x, y: torch.einsum("ij,ij->", x, y), p(3, 4), p(3, 4)),
    program("outer sum", lambda x, y: (x[:, None] + y).square().sum(1), p(3), p(4)),
    program("weight of a bilinear form", lambda x, w, y: torch.einsum("i,oij,j->o", x, w, y),
            p(3), p(2, 3, 4), p(4)),
]  # fmt: skip


# Normalisation and buffers --------------------------------------------------------------------


def statistics_used(x: Tensor) -> Tensor:
    _, mean, rstd = torch.native_layer_norm(x, [4], None, None, 1e-5)
    return x * mean + rstd


def group_statistics_used(x: Tensor) -> Tensor:
    _, mean, rstd = torch.native_group_norm(x, None, None, 2, 6, 1, 2, 1e-5)
    return mean * rstd


def norm_of_weight(v: Tensor, g: Tensor, x: Tensor) -> Tensor:
    weight, norms = torch._weight_norm_interface(v, g, 0)
    return x @ weight.t() + norms.flatten()


def weight_norm_of_number(v: Tensor, g: Tensor) -> Tensor:
    _, norms = torch._weight_norm_interface(v, g.expand(3, 1).contiguous(), 0)
    return norms


def batch_norm(x: Tensor, w: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm((x @ w).t(), mean, var).relu()


def buffer_read_twice(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var) + mean


def batch_norm_of_parts(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(torch.cat([x.relu(), x.square()], 1), mean, var)


_NORMALISATION = [
    program("mean and rstd of layer norm", statistics_used, p(3, 4)),
    program("mean and rstd of group norm", group_statistics_used, p(2, 6, 1), search=False),
    program("weight norm and the norms", norm_of_weight, p(3, 4), p(3, 1), given(2, 4)),
    program("the norms of one gain", weight_norm_of_number, p(3, 4), p(1, 1)),
    program("batch norm", batch_norm, given(3, 2), p(2, 4), statistics(3), statistics(3)),
    program("statistics read as numbers", buffer_read_twice, p(2, 3), statistics(3),
            statistics(3), missing={"*": "a buffer that is read as numbers is a constant"}),
    program("batch norm of two activations", batch_norm_of_parts, p(2, 3), statistics(6),
            statistics(6), split={"x1": (2, 3), "x2": (2, 3), "out0": (2, 2, 3)}),
    program("rms norm", lambda x, w: F.rms_norm(x, [4], w), p(3, 4), p(4)),
    program("softmax over both axes", lambda x: x.flatten().softmax(0), p(3, 4)),
    program("normalize", lambda x: F.normalize(x, dim=0), p(3, 4)),
    program("variance and mean, kept", lambda x: x * x.var(1, keepdim=True) + x.mean(1, True),
            p(3, 4)),
]  # fmt: skip


# Look-ups -------------------------------------------------------------------------------------


def bias_table(table: Tensor) -> Tensor:
    index = torch.tensor([[0, 1], [2, 0]])
    return table[index.flatten()].view(2, 2, 3).permute(2, 0, 1)


_LOOK_UPS = [
    program("embedding, padding and tied head", lambda t, i: F.embedding(
        i, t, padding_idx=0) @ t.t(), p(5, 4), indices(3, below=5), search=False),
    program("relative position bias", bias_table, p(3, 3)),
    program(
        "several indices",
        lambda x: x[torch.tensor([0, 2]), torch.tensor([1, 1])],
        p(3, 4),
        missing={"*": UNREAD},
    ),
    program(
        "several indices apart",
        lambda x: x[torch.tensor([0, 1]), :, torch.tensor([1, 1])],
        p(2, 3, 4),
        missing={"*": UNREAD},
    ),
    program("rows by index and all columns", lambda x, i: x[i] * 2, p(5, 4), indices(3, below=5)),
    program("rows of the largest", lambda s, t: t[s.argmax(1)], p(3, 4), p(4, 2)),
    program("rows of the two largest", lambda s, t: F.embedding(s.topk(2, 0)[1], t), p(4, 3),
            p(4, 2)),
    program("columns of the smallest", lambda s, t: t.index_select(1, s.min(1)[1]), p(3, 4),
            p(2, 4)),
    program("elements by rank", lambda s, t: t.gather(1, s.argsort(1)), p(3, 4), p(3, 4),
            missing={"*": RENAMED}),
    program("written to the topmost", lambda s, t: zeros(3, 4).scatter(1, s.topk(2, 1)[1], t),
            p(3, 4), p(3, 2), missing={"*": RENAMED}),
    program("added to the topmost", lambda x, s, t: x.scatter_add(1, s.topk(2, 1)[1], t),
            p(3, 4), p(3, 4), p(3, 2), missing={"*": RENAMED}),
    program("pairs of the largest", lambda s, t: t[s.argmax(1), :, s.argmax(0)], p(4, 4),
            p(4, 2, 4), search=False),
    program("one at the largest", lambda s: s.argmax(1)[:, None] == torch.arange(4), p(3, 4),
            missing={"*": RENAMED}),
    program("take along", lambda x: torch.take_along_dim(x, x.argsort(1), 1), p(3, 4),
            missing={"*": SORTED}),
]  # fmt: skip


# Complex numbers ------------------------------------------------------------------------------

_COMPLEX = [
    program("real times imaginary", lambda x: x.real * x.imag, complexes(3, 4)),
    program("conjugate", lambda x: (x.conj() * x).real, complexes(3, 4)),
    program("complex of two", lambda x, y: torch.complex(x, y).abs(), p(3, 4), p(4)),
    program("pairs as complex numbers", lambda x: torch.view_as_complex(
        x.view(3, 2, 2)).square().angle(), p(3, 4), split={"x0": (3, 2, 2)}),
]  # fmt: skip


SAMPLES: list[Sample] = [
    *(*_SELECTING, *_WITH_ITSELF, *_WRITING, *_CONSTANTS, *_PRODUCTS),
    *(*_NORMALISATION, *_LOOK_UPS, *_COMPLEX),
]
