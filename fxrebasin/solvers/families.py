"""What is updated together: a class that is within no other, and all classes within it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fxrebasin.layout import Layout, PermutationClass, Piece, Slot
from fxrebasin.solvers.blocks import Block
from fxrebasin.solvers.gram import Gram, Operand, held_axis
from fxrebasin.solvers.pairs import Pair
from fxrebasin.solvers.placement import Placement

# Evidence counts as clear from this multiple of what chance brings.
_CLEAR = 1.5


@dataclass
class Occurrence:
    """A piece that holds a class together with several classes within it.

    Args:
        pair: the tensors.
        dim: which of their groups the piece is on.
        piece: the piece.
        at: the slot of the class that is within no other.
    """

    pair: Pair
    dim: int
    piece: Piece
    at: int

    def beside(self) -> set[str]:
        """Classes of the piece's other slots that are not within the outer class."""
        slots = self.piece.slots
        beside = (s for k, s in enumerate(slots) if k != self.at and self.at not in s.within)
        return {s.class_name for s in beside if s.class_name is not None}

    def decided(self, placement: Placement) -> int:
        """Elements of the piece that tell units apart and whose place across it is decided.

        Args:
            placement: what is decided.
        """
        elements = self.piece.positions.size * self.pair.telling_columns
        for dim, axis in enumerate(self.pair.axes):
            if dim != self.dim:
                axis.source(placement)
                elements *= axis.included
        return elements

    def block(self, placement: Placement) -> Block:
        """The weights over all columns that are decided, as a batch of one problem.

        Args:
            placement: what is decided.
        """
        operand = Operand(self.pair, self.dim, self.piece.positions.reshape(-1, 1))
        sources = [axis.source(placement) for axis in operand.axes]
        picks = [np.flatnonzero(source >= 0) for source in sources]
        taken = [source[pick] for source, pick in zip(sources, picks, strict=True)]
        a = operand.matrix(self.pair.a, picks)
        b = operand.matrix(self.pair.b, taken)
        shape = (1, *self.piece.positions.shape, -1)
        return Block(a.reshape(shape), b.reshape(shape), self.piece.slots)


@dataclass(frozen=True)
class Evidence:
    """How far the gain of a right pair stands out from those of wrong pairs.

    For independent normal weights, each tensor divided by its standard deviation: the expected gain
    of a right pair over the standard deviation of a wrong pair's.

    Args:
        strength: of the right pair.
        chance: what the best of all wrong pairs comes to.
    """

    strength: float
    chance: float

    @property
    def is_clear(self) -> bool:
        """Whether right pairs stand out."""
        return self.strength >= _CLEAR * self.chance


@dataclass(frozen=True)
class Gathered:
    """Gains of a family at one moment.

    Args:
        own: of the outer class by itself, (n, n).
        grams: of each inner class by itself, for all pairs of outer units, (n·size, n·size).
        blocks: weights that hold several classes, with the slot of the outer one.
    """

    own: torch.Tensor | None
    grams: dict[str, torch.Tensor]
    blocks: list[tuple[Block, int]]


@dataclass
class Family:
    """A class that is within no other, the classes within it, and where their gains come from.

    Args:
        root: name of the outer class.
        size: of the outer class.
        is_free: whether the outer class may move; if not, only those within it are matched.
        inner: classes within it that may move, and which axis of their arrays it is.
        own: gains of the outer class by itself.
        grams: gains of an inner class by itself, for all pairs of outer units, by class name.
        occurrences: weights that hold several classes of the family.
    """

    root: str
    size: int
    is_free: bool
    inner: dict[str, int]
    own: Gram | None = None
    grams: dict[str, Gram] = field(default_factory=dict)
    occurrences: list[Occurrence] = field(default_factory=list)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all classes of the family that may move."""
        return (self.root, *self.inner) if self.is_free else tuple(self.inner)

    def all_grams(self) -> list[Gram]:
        """Gains that are kept up to date."""
        return ([] if self.own is None else [self.own]) + list(self.grams.values())

    def neighbours(self) -> frozenset[str]:
        """Classes that the gains depend on; members among them meet themselves in a tensor."""
        names = {name for gram in self.all_grams() for name in gram.names}
        for occurrence in self.occurrences:
            axes = [a for d, a in enumerate(occurrence.pair.axes) if d != occurrence.dim]
            names |= {name for axis in axes for name in axis.names}
            names |= occurrence.beside()
        return frozenset(names)

    def pairs(self) -> list[Pair]:
        """All tensors that hold the outer class."""
        operands = [operand.pair for gram in self.all_grams() for operand in gram.operands]
        found = {id(p): p for p in [*operands, *(o.pair for o in self.occurrences)]}
        return list(found.values())

    def evidence(self, placement: Placement) -> Evidence:
        """How clearly what is decided tells one outer unit from another.

        Args:
            placement: what is decided.
        """
        elements = sum(gram.decided(placement) for gram in self.all_grams()) / self.size
        for occurrence in self.occurrences:
            elements += occurrence.decided(placement) / self.size
        return Evidence(math.sqrt(elements), math.sqrt(2 * math.log(max(2, self.size))))


def gather(family: Family, placement: Placement, evidence: Evidence | None = None) -> Gathered:
    """Collect the gains of a family.

    Args:
        family: whose gains.
        placement: what is decided.
        evidence: how clearly that tells units apart, while other classes are open; None once all
            are decided. Where it is not clear, what is open is described by its outline.
    """

    def gains(gram: Gram) -> torch.Tensor:
        total = gram.update(placement)
        clear = evidence is None or evidence.is_clear
        return total if clear else total + gram.outline(placement)

    blocks = [(occurrence.block(placement), occurrence.at) for occurrence in family.occurrences]
    own = None if family.own is None else gains(family.own)
    return Gathered(own, {name: gains(gram) for name, gram in family.grams.items()}, blocks)


def make_families(
    classes: Sequence[PermutationClass], pairs: Sequence[Pair], free: Collection[str]
) -> list[Family]:
    """Families of all classes that may move and that some tensor holds.

    Args:
        classes: all classes.
        pairs: the tensors that are matched, of a layout made by `restricted`.
        free: names of the classes that may move.
    """
    sizes = {c.name: c.size for c in classes}
    found = _occurrences(pairs)
    families = []
    for c in classes:
        within = [o for o in classes if c.name in o.within and o.name in free]
        inner = {o.name: o.within.index(c.name) for o in within}
        if c.within or not (inner or c.name in free):
            continue
        family = Family(c.name, c.size, c.name in free, inner)
        _fill(family, found.get(c.name, []), sizes)
        if family.all_grams() or family.occurrences:
            families.append(family)
    return families


def restricted(
    layout: Layout, classes: Sequence[PermutationClass], free: Collection[str]
) -> Layout:
    """The layout when only some classes may move: the others become rigid slots.

    Classes that a free one is within stay classes, so that their copies are told apart.

    Args:
        layout: by tensor name.
        classes: all classes.
        free: names of the classes that may move.
    """
    outer = {c.name for c in classes if not c.within}
    kept = {*free, *(w for c in classes if c.name in free for w in c.within if w in outer)}

    if all(c.name in kept for c in classes):
        return layout

    def slot(s: Slot) -> Slot:
        return s if s.class_name is None or s.class_name in kept else Slot(None, s.size)

    return {
        name: tuple(
            replace(g, pieces=tuple(replace(p, slots=tuple(map(slot, p.slots))) for p in g.pieces))
            for g in groups
        )
        for name, groups in layout.items()
    }


def _occurrences(pairs: Sequence[Pair]) -> dict[str, list[Occurrence]]:
    """Every slot of every piece, by the class on it."""
    found: dict[str, list[Occurrence]] = {}
    for pair in pairs:
        for dim, group in enumerate(pair.groups):
            for piece in group.pieces:
                for at, slot in enumerate(piece.slots):
                    if slot.class_name is not None:
                        occurrence = Occurrence(pair, dim, piece, at)
                        found.setdefault(slot.class_name, []).append(occurrence)
    return found


def _fill(family: Family, found: Sequence[Occurrence], sizes: Mapping[str, int]) -> None:
    """Sort every occurrence of the outer class by what else moves with it."""
    own: list[Operand] = []
    single: dict[str, list[Operand]] = {}
    for occurrence in found:
        _sort_in(family, own, single, occurrence)
    if own:
        family.own = Gram(family.size, own)
    for name, operands in single.items():
        family.grams[name] = Gram(family.size * sizes[name], operands)


def _sort_in(
    family: Family, own: list[Operand], single: dict[str, list[Operand]], found: Occurrence
) -> None:
    """Put one occurrence where it belongs."""
    slots, at = found.piece.slots, found.at
    if len(slots) == 1:
        own.append(Operand(found.pair, found.dim, found.piece.positions[:, None]))
        return
    active = [k for k, s in enumerate(slots) if at in s.within and s.class_name in family.inner]
    if len(active) > 1 or any(slots[k].within != (at,) for k in active):
        family.occurrences.append(found)
        return
    held = [k for k in range(len(slots)) if k != at and k not in active]
    rows = found.piece.positions.transpose([at, *active, *held])
    renumbered = {k: new for new, k in enumerate(held)}
    beside = [replace(slots[k], within=tuple(renumbered[w] for w in slots[k].within)) for k in held]
    count = math.prod(rows.shape[: 1 + len(active)])
    operand = Operand(found.pair, found.dim, rows.reshape(count, -1), held_axis(beside))
    if active:
        single.setdefault(slots[active[0]].class_name or "", []).append(operand)
    else:
        own.append(operand)
