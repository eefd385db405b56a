"""What values of a graph come from: the items that outlines are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from torch import Tensor

from fxrebasin.importers.onnx.tails import Fold


@dataclass(frozen=True, eq=False)
class InAdvance:
    """What a weight is together with what follows its layer.

    Args:
        factor: it is multiplied by this, as it is read; None if it is replaced.
        value: it is replaced by this; None if it is multiplied.
    """

    factor: Tensor | None = None
    value: Tensor | None = None

    def of(self, read: Tensor) -> Tensor:
        """The numbers, in the type and shape of the weight.

        Args:
            read: the weight, as it is read.
        """
        if self.factor is not None:
            return (read.double() * self.factor).to(read.dtype)
        return read if self.value is None else self.value.reshape(read.shape).to(read.dtype)


@dataclass(frozen=True)
class Leaf:
    """A weight, where it is read.

    Args:
        name: of the tensor in the whole model.
        shape: of it as it is read.
        order: how its axes were transposed for that; None if they were not.
        uniform: whether it holds one number throughout, so that others may leave it out.
        part: the places along its last axis that are read; None for all.
        computed: what is done to it in advance; None if it is as in the file.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = None
    uniform: bool = False
    part: tuple[int, int] | None = None
    computed: InAdvance | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """Its sizes without those of 1."""
        shape = self.shape
        if self.part is not None:
            shape = (*shape[:-1], self.part[1] - self.part[0])
        return tuple(size for size in shape if size != 1)

    def turned(self, order: Sequence[int]) -> Leaf:
        """The same, transposed once more.

        Args:
            order: of the axes.
        """
        before = self.order or tuple(range(len(self.shape)))
        if len(before) != len(order):  # it was reshaped since
            return self
        shape = tuple(self.shape[at] for at in order)
        return replace(self, shape=shape, order=tuple(before[at] for at in order))

    def cut(self, start: int, stop: int) -> Leaf:
        """Some places along the last axis.

        Args:
            start: the first of them.
            stop: the one after the last.
        """
        return replace(self, part=(start, stop))


@dataclass(frozen=True)
class Entry:
    """An input of the graph, or of a body that is in so many others, by its place."""

    place: int
    depth: int = 0

    def __str__(self) -> str:
        return f"input {self.place}" + (f" of a body, {self.depth} deep" if self.depth else "")


@dataclass(frozen=True, eq=False)
class Anchor:
    """Something that reads weights or multiplies values.

    Args:
        kind: what it does.
        label: what messages call it.
        weights: that it reads, by their places; None for those that it may have and has not.
        sources: where each value comes from that it works on.
        folded: the layer that this is the tail of, and all of that tail, as one layer; None if it
            is no tail.
        fold: the tail that went into its weights; None where nothing did.
        loose: whether only layers and products tell where something comes from.
    """

    kind: str
    label: str
    weights: tuple[Leaf | None, ...]
    sources: tuple[Origin, ...]
    folded: Anchor | None = None
    fold: Fold | None = None
    loose: bool = False
    keys: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        below = [sorted(keys_of(origin, self.loose)) for origin in self.sources]
        if self.kind == SCALE or (self.loose and self.kind == LOOKUP):  # others may leave it out
            found = frozenset(key for keys in below for key in keys)
        else:
            sizes = [None if leaf is None else sorted(leaf.dims) for leaf in self.weights[:1]]
            if self.kind == LINEAR:  # others may have several in one
                sizes = [[leaf.shape[-2]] for leaf in self.weights[:1] if leaf is not None]
            text = repr((self.kind, sizes, below))
            found = frozenset({hashlib.sha256(text.encode()).hexdigest()})
        object.__setattr__(self, "keys", found)


Item: TypeAlias = Leaf | Entry | Anchor
Origin: TypeAlias = tuple[Item, ...]
"""All that a value comes from, each once; nothing for numbers that depend on nothing."""

LINEAR, PRODUCT, SCALE, LOOKUP = "linear", "product", "scale", "lookup"
BIASED = frozenset({LINEAR, SCALE, "Conv", "ConvTranspose"})
"""Kinds whose last weight is added to what they make."""


def keys_of(origin: Origin, loose: bool = False) -> frozenset[str]:
    """What tells origins apart, whoever wrote the graph: weights that are added do not count.

    Args:
        origin: of a value.
        loose: whether inputs do not count either.
    """
    found: set[str] = set()
    for item in origin:
        if isinstance(item, Entry) and not loose:
            found.add(str(item))
        elif isinstance(item, Anchor):
            found |= item.keys
    return frozenset(found)


def together(*origins: Origin) -> Origin:
    """What a value comes from that is made of several.

    Args:
        origins: of them.
    """
    return tuple(dict.fromkeys(item for origin in origins for item in origin))


def only_leaf(origin: Origin) -> Leaf | None:
    """The weight that a value is; None if it is something else.

    Args:
        origin: of the value.
    """
    found = origin[0] if len(origin) == 1 else None
    return found if isinstance(found, Leaf) else None


def biased(value: Origin, bias: Origin) -> Origin | None:
    """A value plus a weight that is its own bias; None if it is no such thing.

    Args:
        value: where it comes from.
        bias: where what is added comes from.
    """
    leaf = only_leaf(bias)
    owner = value[0] if len(value) == 1 else None
    if leaf is None or not isinstance(owner, Anchor) or owner.kind not in BIASED:
        return None
    if owner.weights[-1] is not None or len(leaf.dims) > 1:
        return None
    return (replace(owner, weights=(*owner.weights[:-1], leaf)),)
