"""Which parts of the state write means over units that nothing sees, or read units without one?

A norm that takes the mean over units off leaves two things open: the mean of what is written in
front of it, and how what it makes is read along ones. This holds whatever group acts on the class.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from torch import fx

from fxrebasin.groups import Reading
from fxrebasin.kinds import Place
from fxrebasin.passes.kinds.analysis import Analysis
from fxrebasin.passes.kinds.marks import Mark
from fxrebasin.passes.kinds.walk import name_of
from fxrebasin.passes.rules.scaling import Scaling


@dataclass(eq=False)
class Use:
    """A part of the state at one operator.

    Attributes:
        node: of the operator; of what writes behind factors, that of the last of these.
        writes: whether it makes a value that is linear in the part.
        reads: how centred units were changed that it is contracted with.
        factors: by which what it writes is multiplied.
    """

    node: fx.Node
    writes: bool = False
    reads: Reading | None = None
    factors: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What is known of a value with units.

    Attributes:
        centred: how what has no mean was changed since; None if it may have one.
        written: uses of parts that wrote it, and nothing else.
    """

    centred: Reading | None = None
    written: tuple[Use, ...] = ()


@dataclass
class Means(Analysis):
    """Collects how parts of the state are used; see `fxrebasin.passes.kinds.analysis`.

    Attributes:
        size: of a copy of the class.
        vectors: places that hold one number for each unit.
        at: the operator that is looked at.
        uses: of each place.
        shown: shifts of norms that something other than a reader sees.
        offsets: what is added to vectors before they multiply.
    """

    size: int
    vectors: Collection[Place]
    at: object = ""
    uses: dict[Place, list[Use]] = field(default_factory=dict)
    shown: set[Place] = field(default_factory=set)
    offsets: dict[Place, float] = field(default_factory=dict)

    def joined(self, one: Mark, two: Mark) -> Seen:
        """See `Analysis`."""
        if one.source is not None and two.source is None:
            one, two = two, one
        found = (*self._uses(one, writes=True), *self._uses(two, writes=True))
        reading = self._open(one, two)
        if reading is not None:
            return Seen(replace(reading, shift=two.source))
        if two.source is not None:
            found = (*_seen(one).written, *found)
        return replace(self._plain(one, two), written=found if self._alone() else ())

    def multiplied(self, one: Mark, two: Mark) -> Seen:
        """See `Analysis`."""
        if one.source is not None and two.source is None:
            one, two = two, one
        self._uses(one)
        self._uses(two)
        reading = self._open(one, two)
        if two.source is not None and not self._same_offset(two.source, two.offset):
            return self._plain(one, two)
        if reading is None or two.source is None:
            return replace(self._plain(one, two), written=self._scaled(one, two.source))
        return Seen(replace(reading, factors=(*reading.factors, two.source)))

    def contracted(self, one: Mark, two: Mark) -> None:
        """See `Analysis`."""
        if one.source is not None and two.source is None:
            one, two = two, one
        reading = _seen(one).centred
        if one.source is None and two.source is not None and reading is not None:
            self._uses(two, reads=reading)
        else:
            self._uses(one)
            self._uses(two)
            self._plain(one, two)

    def summed(self, mark: Mark) -> None:
        """See `Analysis`."""
        self._lost(mark)

    def beside(self, mark: Mark) -> Seen:
        """See `Analysis`."""
        return self._lost(mark)

    def centred(self, mark: Mark) -> Seen:
        """See `Analysis`."""
        self._lost(mark)
        return Seen(Reading())

    def offset(self, mark: Mark) -> bool:
        """See `Analysis`."""
        return mark.source in self.vectors

    def scaled(self, mark: Mark, scaling: Scaling) -> Seen:
        """See `Analysis`."""
        return self._lost(mark)

    def largest(self, mark: Mark) -> Seen:
        """See `Analysis`."""
        return self._lost(mark)

    def carried(self, mark: Mark) -> Seen:
        """See `Analysis`: a shift stays the same only where it is averaged."""
        written = self._uses(mark, writes=True)
        reading = _seen(mark).centred
        averaged = self.node is not None and name_of(self.node) == "mean"
        if reading is None or (reading.shift is not None and not averaged):
            return replace(self._plain(mark), written=written)
        return _seen(mark)

    def stays(self, mark: Mark) -> Seen:
        """See `Analysis`."""
        return self._lost(mark)

    def kept(self, mark: Mark) -> None:
        """See `Analysis`."""
        self._lost(mark)

    def _open(self, one: Mark, two: Mark) -> Reading | None:
        """How a value is centred that a vector meets, if nothing was added to it before."""
        reading = _seen(one).centred if one.source is None and two.source in self.vectors else None
        return None if reading is None or reading.shift is not None else reading

    def _scaled(self, mark: Mark, vector: Place | None) -> tuple[Use, ...]:
        """What wrote a value writes it behind a factor from now on, if nothing else reads it."""
        if vector is None or vector not in self.vectors or self.node is None or not self._alone():
            return ()
        written = _seen(mark).written
        for use in written:
            use.node, use.factors = self.node, (*use.factors, vector)
        return written

    def _same_offset(self, place: Place, offset: float) -> bool:
        """Whether a factor is the same wherever it multiplies."""
        return self.offsets.setdefault(place, offset) == offset

    def _lost(self, mark: Mark) -> Seen:
        self._uses(mark)
        return self._plain(mark)

    def _plain(self, *marks: Mark) -> Seen:
        readings = [_seen(mark).centred for mark in marks]
        self.shown.update(r.shift for r in readings if r is not None and r.shift is not None)
        return Seen()

    def _alone(self) -> bool:
        """Whether nothing else reads what an operator works on."""
        inputs = self.node.all_input_nodes if self.node is not None else []
        return all(len(item.users) == 1 for item in inputs if item.op == "call_function")

    def _uses(
        self, mark: Mark, writes: bool = False, reads: Reading | None = None
    ) -> tuple[Use, ...]:
        if mark.source is None or self.node is None:
            return ()
        use = Use(self.node, writes, reads)
        self.uses.setdefault(mark.source, []).append(use)
        return (use,)


def _seen(mark: Mark) -> Seen:
    found: Seen = mark.form
    return found
