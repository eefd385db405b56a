"""What acts on units inside heads that no permutation moves, since rotary embeddings hold them.

They may be turned in pairs. Where queries and keys have norms of their own, with a factor for each
unit behind them, nothing turns: then both factors of a pair may be multiplied by a number in
queries and divided by it in keys, and norms that take the mean off do not see the mean of what
makes queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fxrebasin.groups import Centring
from fxrebasin.kinds import ClassKind, GroupKind, Place
from fxrebasin.layout import AxisGroup, Layout, PermutationClass
from fxrebasin.passes.kinds.analysis import LimitError
from fxrebasin.passes.kinds.following import followed, held_of, vectors_of
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.gauges import centring_of
from fxrebasin.passes.kinds.known import Known
from fxrebasin.passes.kinds.marks import Shape, placed
from fxrebasin.passes.kinds.means import Means, Seen
from fxrebasin.passes.kinds.meetings import meetings
from fxrebasin.passes.kinds.pairs import Pairs, Term
from fxrebasin.passes.kinds.scales import Scales, of_place
from fxrebasin.passes.kinds.turned import of_pairs, turned_at, turned_in

_Candidates = Iterable[tuple[PermutationClass, Layout]]


@dataclass
class Inner:
    """Classes of units that stay in place.

    Attributes:
        graph: of the model.
        layout: where units of permuted classes are.
        sizes: of these classes.
        shapes: of the state.
        turned: classes of units that are turned in pairs.
        turned_layout: where these are.
        still: classes of units of which factors or means may be chosen.
        still_layout: where these are.
        kinds: what acts on each.
        centring: what centred norms leave open of each.
    """

    graph: FunctionalGraph
    layout: Layout
    sizes: Mapping[str, int]
    shapes: Mapping[str, Shape]
    turned: list[PermutationClass] = field(default_factory=list)
    turned_layout: dict[str, tuple[AxisGroup, ...]] = field(default_factory=dict)
    still: list[PermutationClass] = field(default_factory=list)
    still_layout: Layout = field(default_factory=dict)
    kinds: dict[str, ClassKind] = field(default_factory=dict)
    centring: dict[str, Centring] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        graph: FunctionalGraph,
        classes: Sequence[PermutationClass],
        layout: Layout,
        shapes: Mapping[str, Shape],
    ) -> Inner:
        """All classes of such units of a model.

        Args:
            graph: of the model.
            classes: of its symmetry.
            layout: where their units are.
            shapes: of the state.
        """
        found = cls(graph, layout, {c.name: c.size for c in classes}, shapes)
        met = list(meetings(graph))
        for c in classes:
            if not c.within:
                found._look(turned_in(layout, c), [{state for state, _ in axes} for axes in met])
        for axes in met:
            found._look(turned_at(layout, axes, shapes), [{state for state, _ in axes}])
        return found

    @property
    def outer(self) -> set[str]:
        """The names of the classes that such units are inside of."""
        return {name for c in (*self.turned, *self.still) for name in c.within}

    def _look(self, candidates: _Candidates, met: Sequence[set[str]]) -> None:
        """Take the first of several classes that something acts on.

        Args:
            candidates: with their layouts.
            met: names of tensors that make units which are multiplied with each other.
        """
        refused = []
        for c, places in candidates:
            if not self.turned_layout.keys().isdisjoint(places):
                return
            own = self._pairs(c, self._places(c, places))
            if own is not None:
                self.turned.append(c)
                self.turned_layout |= places
                self.kinds[c.name] = own
                return
            if any(places.keys() <= names for names in met):
                refused.append((c, places))
        for c, places in refused:
            centred = self._means(c, places)
            if any(self._factors(*way) for way in of_pairs(c, places)) or centred:
                return

    def _places(self, c: PermutationClass, layout: Layout) -> dict[Place, Tensor]:
        return placed(layout, [c], self.sizes, self.shapes)[c.name]

    def _pairs(self, c: PermutationClass, places: Mapping[Place, Tensor]) -> ClassKind | None:
        """How complex numbers act on units that are turned in pairs; None if they are not."""
        state = frozenset((*self.layout, *(place.state for place in places)))
        pairs = Pairs(c.size, Known(self.graph, state))
        try:
            followed(self.graph, pairs, places, Term)
            parts = pairs.found()
        except LimitError:
            return None
        if pairs.partner is None or parts.keys() != places.keys():
            return None
        partner = tuple(int(unit) for unit in pairs.partner)
        return ClassKind(GroupKind.COMPLEX_PAIRS, parts, {}, partner=partner)

    def _means(self, c: PermutationClass, layout: Layout) -> bool:
        """Whether nothing sees the mean of what makes the units of a head."""
        if any(slot not in (None, c.name, *c.within) for slot in _names(layout)):
            return False  # several heads have the same units
        layout = self._beside(layout)
        places = self._places(c, layout)
        means = Means(c.size, vectors_of(places, self.shapes))
        walk = followed(self.graph, means, places, lambda place: Seen())
        found = centring_of(walk, means)
        written = {place.state for own in self.centring.values() for place in own.writers}
        if not found.writers or written.intersection(place.state for place in found.writers):
            return False
        offsets = {place: offset for place, offset in sorted(means.offsets.items()) if offset}
        kind = ClassKind(GroupKind.PERMUTATION, {}, {}, offsets=offsets)
        self._stays(c, layout, kind, found)
        return True

    def _factors(self, c: PermutationClass, layout: Layout) -> bool:
        """Whether factors of pairs may be chosen, which others make up for."""
        layout = self._beside(layout)
        places = self._places(c, layout)
        scales = Scales(c.size, vectors_of(places, self.shapes))
        followed(self.graph, scales, places, of_place)
        found = scales.found(sorted(places), "", held_of(self.graph, places))
        taken = {place.state for own in self.kinds.values() for f in own.factors for place in f}
        for way in (found.scales, *found.factors):
            first = next((p for p in sorted(way) if p in scales.vectors), None)
            names = {place.state for place in way}
            if first is None or not names <= self.graph.parameters or names & taken:
                continue
            factor = {first: way[first], **way}
            kind = ClassKind(
                GroupKind.PERMUTATION, {}, {}, factors=(factor,), offsets=found.offsets
            )
            self._stays(c, layout, kind, Centring())
            return True
        return False

    def _beside(self, layout: Layout) -> Layout:
        """The layout of classes that stay, with another one."""
        more = {name: (*self.still_layout.get(name, ()), *own) for name, own in layout.items()}
        return {**self.still_layout, **more}

    def _stays(
        self, c: PermutationClass, layout: Layout, kind: ClassKind, centring: Centring
    ) -> None:
        self.still.append(c)
        self.still_layout = layout
        self.kinds[c.name], self.centring[c.name] = kind, centring


def _names(layout: Layout) -> Iterator[str | None]:
    groups = (group for own in layout.values() for group in own)
    return (slot.class_name for group in groups for piece in group.pieces for slot in piece.slots)
