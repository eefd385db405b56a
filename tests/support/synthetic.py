"""Layouts written by hand, as the analysis would find them, with state to fill them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fxrebasin.layout import AxisGroup, Layout, PermutationClass, Piece, Slot
from fxrebasin.permutation import Permutation


@dataclass
class Synthetic:
    """Classes and layout of a model that exists only as a set of weights."""

    classes: tuple[PermutationClass, ...] = ()
    layout: Layout = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)

    def declare(self, name: str, size: int, within: tuple[str, ...] = ()) -> str:
        """Add a class."""
        self.classes += (PermutationClass(name, size, within),)
        return name

    def add(self, name: str, shape: tuple[int, ...], *groups: AxisGroup, tie: str = "") -> None:
        """Add a tensor, perhaps under a second name."""
        self.shapes[name] = shape
        self.layout = {**self.layout, name: groups} if groups else self.layout
        if tie:
            self.ties[name] = tie

    def piece(self, names: Sequence[str | int], start: int = 0) -> Piece:
        """A row-major piece; a number is a rigid slot of that size."""
        sizes = {c.name: c.size for c in self.classes}
        within = {c.name: c.within for c in self.classes}
        slots = tuple(
            Slot(None, n)
            if isinstance(n, int)
            else Slot(n, sizes[n], tuple(names.index(w) for w in within[n]))
            for n in names
        )
        shape = tuple(slot.size for slot in slots)
        return Piece(slots, start + np.arange(math.prod(shape)).reshape(shape))

    def axis(self, axis: int, *parts: str | Sequence[str | int]) -> AxisGroup:
        """One axis: its pieces one after the other, each a class or a list of slots."""
        pieces: list[Piece] = []
        start = 0
        for part in parts:
            pieces.append(self.piece([part] if isinstance(part, str) else part, start))
            start += pieces[-1].positions.size
        return AxisGroup((axis,), tuple(pieces))

    def linear(self, name: str, outputs: AxisGroup | int, inputs: AxisGroup | int, *rest: int):
        """A weight and a bias; a number is an axis without classes."""
        shape = tuple(s if isinstance(s, int) else extent(s) for s in (outputs, inputs))
        groups = [g for g in (outputs, inputs) if isinstance(g, AxisGroup)]
        self.add(f"{name}.weight", (*shape, *rest), *groups)
        self.add(f"{name}.bias", shape[:1], *[g for g in groups if g.axes == (0,)])

    def state(
        self, seed: int, dtype: torch.dtype = torch.float32, spread: float = 1.0
    ) -> dict[str, torch.Tensor]:
        """Normal weights of fan-in scale, biases of 0.1."""
        generator = torch.Generator().manual_seed(seed)
        state: dict[str, torch.Tensor] = {}
        for name, shape in self.shapes.items():
            if name in self.ties:
                state[name] = state[self.ties[name]]
                continue
            fan = math.prod(shape[1:])
            scale = spread * (0.1 if len(shape) == 1 else 1 / math.sqrt(fan))
            state[name] = (torch.randn(shape, generator=generator) * scale).to(dtype)
        return state

    def random(self, seed: int) -> Permutation:
        """A random element of the group."""
        return Permutation.random(self.classes, self.layout, seed)

    def identity(self) -> Permutation:
        """The neutral element of the group."""
        return Permutation.identity(self.classes, self.layout)


def extent(group: AxisGroup) -> int:
    """Number of positions that the pieces of a group fill."""
    return sum(piece.positions.size for piece in group.pieces)


def mlp(*sizes: int) -> Synthetic:
    """Linear layers; input and output are pinned."""
    s = Synthetic()
    for i, size in enumerate(sizes[1:-1], start=1):
        s.declare(f"h{i}", size)
    for i in range(1, len(sizes)):
        outputs = s.axis(0, f"h{i}") if i < len(sizes) - 1 else sizes[i]
        inputs = s.axis(1, f"h{i - 1}") if i > 1 else sizes[0]
        s.linear(f"layers.{i}", outputs, inputs)
    return s


def residual_mlp(width: int = 24, hidden: int = 32, blocks: int = 3, square: bool = True):
    """A residual stream, blocks on it, and (if square) matrices with it on both axes."""
    s = Synthetic()
    s.declare("r", width)
    s.linear("stem", s.axis(0, "r"), 12)
    for i in range(blocks):
        s.declare(f"h{i}", hidden)
        s.add(f"blocks.{i}.norm.weight", (width,), s.axis(0, "r"))
        s.linear(f"blocks.{i}.up", s.axis(0, f"h{i}"), s.axis(1, "r"))
        s.linear(f"blocks.{i}.down", s.axis(0, "r"), s.axis(1, f"h{i}"))
        if square:
            s.linear(f"blocks.{i}.mix", s.axis(0, "r"), s.axis(1, "r"))
    s.linear("head", 10, s.axis(1, "r"))
    return s


def recurrent(width: int = 24) -> Synthetic:
    """An Elman cell: few inputs, one class on both axes."""
    s = Synthetic()
    s.declare("h", width)
    s.linear("ih", s.axis(0, "h"), 6)
    s.linear("hh", s.axis(0, "h"), s.axis(1, "h"))
    s.linear("head", 5, s.axis(1, "h"))
    return s


def attention(
    width: int = 32, heads: int = 4, dim: int = 8, blocks: int = 2, fused: bool = True
) -> Synthetic:
    """Transformer blocks; the dims of query/key and of value/output are permuted per head."""
    s = Synthetic()
    s.declare("r", width)
    s.add("embed", (50, width), s.axis(1, "r"))
    for i in range(blocks):
        h = s.declare(f"b{i}.h", heads)
        qk = s.declare(f"b{i}.qk", dim, (h,))
        v = s.declare(f"b{i}.v", dim, (h,))
        m = s.declare(f"b{i}.m", 2 * width)
        if fused:
            s.linear(f"b{i}.qkv", s.axis(0, (h, qk), (h, qk), (h, v)), s.axis(1, "r"))
        else:
            for part, dims in (("q", qk), ("k", qk), ("v", v)):
                s.linear(f"b{i}.{part}", s.axis(0, (h, dims)), s.axis(1, "r"))
        s.add(f"b{i}.bias_table", (9, heads), s.axis(1, h))
        s.linear(f"b{i}.o", s.axis(0, "r"), s.axis(1, (h, v)))
        s.linear(f"b{i}.up", s.axis(0, m), s.axis(1, "r"))
        s.linear(f"b{i}.down", s.axis(0, "r"), s.axis(1, m))
    s.add("norm", (width,), s.axis(0, "r"))
    return s


def grouped_query(
    width: int = 32, kv: int = 2, queries: int = 3, dim: int = 4, rotary: bool = True
) -> Synthetic:
    """Grouped-query attention: query heads and value dims within key/value heads."""
    s = Synthetic()
    s.declare("r", width)
    s.declare("kv", kv)
    s.declare("g", queries, ("kv",))
    s.declare("e", dim, ("kv",))
    qk: str | int = dim if rotary else s.declare("qk", dim, ("kv",))
    s.add("embed", (40, width), s.axis(1, "r"))
    s.linear("q", s.axis(0, ("kv", "g", qk)), s.axis(1, "r"))
    s.linear("k", s.axis(0, ("kv", qk)), s.axis(1, "r"))
    s.linear("v", s.axis(0, ("kv", "e")), s.axis(1, "r"))
    s.linear("o", s.axis(0, "r"), s.axis(1, ("kv", "g", "e")))
    return s


def grouped_conv(width: int = 16, groups: int = 4, inner: int = 5, blocks: int = 2) -> Synthetic:
    """ResNeXt blocks: channels within groups on both sides of a grouped 3 × 3 convolution."""
    s = Synthetic()
    s.declare("r", width)
    s.linear("stem", s.axis(0, "r"), 3, 3, 3)
    for i in range(blocks):
        g = s.declare(f"b{i}.g", groups)
        ci = s.declare(f"b{i}.ci", inner, (g,))
        co = s.declare(f"b{i}.co", inner, (g,))
        s.linear(f"b{i}.reduce", s.axis(0, (g, ci)), s.axis(1, "r"), 1, 1)
        weight = AxisGroup((0, 1), (s.piece((g, co, ci)),))
        s.add(f"b{i}.conv.weight", (groups * inner, inner, 3, 3), weight)
        s.add(f"b{i}.conv.bias", (groups * inner,), s.axis(0, (g, co)))
        s.linear(f"b{i}.expand", s.axis(0, "r"), s.axis(1, (g, co)), 1, 1)
    s.linear("head", 10, s.axis(1, "r"))
    return s


def flattened(channels: int = 12, area: int = 9) -> Synthetic:
    """A convolution whose channels are flattened with their positions into a linear layer."""
    s = Synthetic()
    s.declare("c", channels)
    s.declare("h", 20)
    s.linear("conv", s.axis(0, "c"), 3, 3, 3)
    s.linear("fc1", s.axis(0, "h"), s.axis(1, ("c", area)))
    s.linear("fc2", 10, s.axis(1, "h"))
    return s


def dense(growth: int = 6, layers: int = 4) -> Synthetic:
    """Each layer reads the concatenation of all before it, and of the pinned input."""
    s = Synthetic()
    names: list[str | tuple[int]] = [(3,)]
    for i in range(layers):
        fresh = s.declare(f"c{i}", growth)
        s.linear(f"layers.{i}", s.axis(0, fresh), s.axis(1, *names), 3, 3)
        names.append(fresh)
    s.linear("head", 10, s.axis(1, *names))
    return s


def tied(width: int = 24) -> Synthetic:
    """Input and output embedding are one tensor under two names."""
    s = residual_mlp(width, square=False)
    s.add("embed", (30, width), s.axis(1, "r"))
    s.add("unembed", (30, width), s.axis(1, "r"), tie="embed")
    return s


def shuffled(width: int = 12) -> Synthetic:
    """Positions without a regular step, some of them in no piece."""
    s = Synthetic()
    s.declare("a", width)
    s.declare("b", width)
    order = np.random.default_rng(5).permutation(2 * width + 3)
    first = Piece((Slot("a", width),), order[:width])
    second = Piece((Slot("b", width),), order[width : 2 * width])
    s.add("in", (2 * width + 3, 7), AxisGroup((0,), (first, second)))
    s.add("out", (9, 2 * width + 3, 3), AxisGroup((1,), (first, second)))
    return s


def deep(outer: int = 3, middle: int = 2, inner: int = 4, width: int = 20) -> Synthetic:
    """Three levels: units within sub-groups within groups, and a second class per group."""
    s = Synthetic()
    s.declare("r", width)
    s.declare("x", outer)
    s.declare("y", middle, ("x",))
    s.declare("z", inner, ("x", "y"))
    s.declare("w", inner, ("x",))
    s.linear("stem", s.axis(0, "r"), 12)
    s.linear("up", s.axis(0, ("x", "y", "z")), s.axis(1, "r"))
    s.linear("side", s.axis(0, ("x", "w")), s.axis(1, "r"))
    s.add(
        "mix", (outer * middle * inner, inner), AxisGroup((0, 1), (s.piece(("x", "y", "z", "w")),))
    )
    s.linear("down", s.axis(0, "r"), s.axis(1, ("x", "y", "z")))
    return s


def two_selectors(width: int = 16) -> Synthetic:
    """Units whose permutation depends on two classes that are independent of each other."""
    s = Synthetic()
    s.declare("r", width)
    s.declare("x", 3)
    s.declare("y", 4)
    s.declare("d", 5, ("x", "y"))
    s.linear("stem", s.axis(0, "r"), 10)
    s.linear("up", s.axis(0, ("x", "y", "d")), s.axis(1, "r"))
    s.linear("down", s.axis(0, "r"), s.axis(1, ("x", "y", "d")))
    return s


ZOO = {
    "mlp": lambda: mlp(10, 30, 40, 20, 6),
    "narrow input": lambda: mlp(2, 24, 24, 1),
    "residual": residual_mlp,
    "recurrent": recurrent,
    "attention": attention,
    "attention, separate": lambda: attention(fused=False),
    "grouped query": grouped_query,
    "grouped query, dims": lambda: grouped_query(rotary=False),
    "grouped conv": grouped_conv,
    "flattened": flattened,
    "dense": dense,
    "tied": tied,
    "shuffled": shuffled,
    "deep": deep,
    "two selectors": two_selectors,
}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states are the same bit for bit."""
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


def one_axis(size: int, axis: int = 0, name: str = "w") -> Synthetic:
    """One class on one axis of one tensor."""
    s = Synthetic()
    s.declare("c", size)
    s.add(name, (size,), s.axis(axis, "c"))
    return s
