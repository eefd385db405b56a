"""What is known of the groups that act on a model, beyond permutations of its units."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from torch import Tensor

from fxrebasin.kinds import ClassKind, GroupKind, Place
from fxrebasin.layout import Layout, PermutationClass


@dataclass(frozen=True)
class Shift:
    """A parameter to which anything may be added, since others take it back.

    Attributes:
        parameter: its name; where it has more elements than the dimension, as an embedding has, the
            same is added to all rows along its last axis.
        takers: names of those that take it back; a softmax may not see it at all.
        dimension: how many numbers may be chosen.
        positions: which elements of the parameter they are; none for all, or whole rows.
        in_training: whether that is so where norms take statistics of what they are given, too.
    """

    parameter: str
    takers: frozenset[str]
    dimension: int
    positions: tuple[int, ...] = ()
    in_training: bool = True


@dataclass(frozen=True)
class Reading:
    """What is done to units between a part of the state and a norm that takes their mean off.

    Attributes:
        factors: vectors that they are multiplied by.
        shift: a vector that is added after that, in front of what reads.
    """

    factors: tuple[Place, ...] = ()
    shift: Place | None = None


@dataclass(frozen=True)
class Centring:
    """What norms that take the mean off leave open.

    Attributes:
        readers: parts that read centred values; any multiple of ones may be added to their rows,
            once these are multiplied by the factors in front of them.
        readings: what is between the norm and each reader or writer.
        writers: parts whose mean over the units nothing sees.
        shifts: shifts of norms that readers without a bias can take back for this reason.
    """

    readers: tuple[Place, ...] = ()
    readings: Mapping[Place, Reading] = field(default_factory=dict)
    writers: tuple[Place, ...] = ()
    shifts: tuple[Place, ...] = ()


class GaugeKind(Enum):
    """What may be chosen freely, since other parameters make up for it."""

    SCALE = "a factor for each unit, which what reads them divides by"
    SHIFT = "anything may be added, and others take it back"
    MEAN_READ = "how the mean of units that have none is read"
    MEAN_WRITTEN = "a mean over units that is taken off before they are read"


@dataclass(frozen=True)
class Gauge:
    """Numbers of a model that may be chosen freely, since others make up for them.

    Attributes:
        kind: of which sort they are.
        parameters: the first is the one that is chosen; the others make up for it.
        dimension: how many numbers there are.
    """

    kind: GaugeKind
    parameters: tuple[str, ...]
    dimension: int


Shifting: TypeAlias = Callable[
    [Mapping[str, Tensor], Mapping[str, Tensor] | None], dict[str, Tensor]
]
"""Takes a state and a reference, or None for zeros; see `fxrebasin.passes.kinds.regauge`."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups that act on a model's state and leave its function as it is.

    Attributes:
        kinds: by the name of the class.
        layout: where the units of permutation classes are.
        turned: classes of units that rotary embeddings keep in place.
        turned_layout: where these are.
        centring: what centred norms leave open, by the name of the class.
        shifts: parameters to which anything may be added.
        gauges: all that may be chosen freely.
        dimension: of the continuous part of all of it.
        still: classes of units that stay in place, of which factors and means may be chosen.
        still_layout: where these are.
        shifted: a state with the shifts of another one, or with zeros, which others make up for;
            None where there are none.
    """

    kinds: Mapping[str, ClassKind]
    layout: Layout
    turned: tuple[PermutationClass, ...] = ()
    turned_layout: Layout = field(default_factory=dict)
    centring: Mapping[str, Centring] = field(default_factory=dict)
    shifts: tuple[Shift, ...] = ()
    gauges: tuple[Gauge, ...] = ()
    dimension: int = 0
    still: tuple[PermutationClass, ...] = ()
    still_layout: Layout = field(default_factory=dict)
    shifted: Shifting | None = field(default=None, repr=False)

    def layout_of(self, name: str) -> Layout:
        """Where the units of a class are, with those of others.

        Args:
            name: of the class.
        """
        if any(c.name == name for c in self.turned):
            return self.turned_layout
        if any(c.name == name for c in self.still):
            return self.still_layout
        return self.layout

    def signed(self) -> Groups:
        """Permutations and signs only."""
        return Groups({name: _signed(kind) for name, kind in self.kinds.items()}, self.layout)

    def regauged(self, parameters: Collection[str]) -> Groups:
        """With only those free numbers that are parameters, also while the model is trained.

        Shifts are those of what matrices act on.

        Args:
            parameters: their names.
        """
        kinds = {}
        for name, own in self.kinds.items():
            kept = (f for f in own.factors if all(place.state in parameters for place in f))
            kinds[name] = replace(own, factors=tuple(kept))
        mixed = {place.state for own in self.kinds.values() for place in own.parts}
        shifts = tuple(s for s in self.shifts if s.parameter in mixed and s.in_training)
        return replace(self, kinds=kinds, shifts=shifts)

    def folded(self) -> Groups:
        """The same for states whose factors in front of matrices are ones, so that none matters."""
        return replace(self, kinds={name: _folded(kind) for name, kind in self.kinds.items()})


def _folded(own: ClassKind) -> ClassKind:
    parts = {place: replace(part, factors=()) for place, part in own.parts.items()}
    return replace(own, parts=parts, factors=())


def _signed(own: ClassKind) -> ClassKind:
    kind = own.kind.meet(GroupKind.SIGNED)
    signs = dict.fromkeys(own.parts, 1) if own.kind.has_matrices else own.signs
    return replace(own, kind=kind, parts={}, scales={}, signs=signs, factors=(), spare=())
