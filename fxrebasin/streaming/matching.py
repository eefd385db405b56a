"""Weight matching of two checkpoints that pass through memory; `schedule.py` says in which order.

Exact coordinate descent: a visited family is solved while its tensors are in memory and the streams
are held; each tensor that no later visit needs adds its share, with what was just decided, to the
gains of its streams; at the end of the sweep the streams are solved. Nothing else is read for the
figures: both distances and both inner products are summed on the way, and what a stream's step adds
is in its gains. It is over when a sweep leaves nothing that could move.

Several processes may share the work: each makes visits of its own, and adds its part to the gains
of the streams, which are sums that do not depend on who added what (`exact.py`). Streams are solved
by all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import torch

from fxrebasin.counted import counted
from fxrebasin.indexing import identity_arrays
from fxrebasin.layout import IntArray
from fxrebasin.passes.match.closeness import closeness_of
from fxrebasin.running.freed import give_back_memory
from fxrebasin.solvers.assignment import ROUNDING
from fxrebasin.solvers.families import Evidence
from fxrebasin.solvers.placement import Placement
from fxrebasin.streaming.dealing import Part, deal, first_look
from fxrebasin.streaming.exact import ExactSum, exponent_for
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.ranks import ALONE, Ranks
from fxrebasin.streaming.schedule import Schedule
from fxrebasin.streaming.sweeping import Tensors, add_gains, agreement, more, moved, solved, visit

Read: TypeAlias = Callable[[str, slice | None], torch.Tensor]
"""From a name, and a range of rows or None, to a tensor in memory of its own."""
Sums: TypeAlias = dict[str, tuple[float, float]]
"""Inner product and squared distance, by what tells a part of a tensor from others."""

_SIXTEENTH = 16
_WIDE = 8


@dataclass(frozen=True)
class Progress:
    """How far a match is: everything that is needed to go on with it.

    Args:
        sweep: that is being made, from 1.
        step: the number of its next step.
        arrays: int64 by class name.
        known: names of the classes that are decided.
        totals: gains of the streams, as far as this process summed them up in this sweep.
        scales: the exponent of their units, and what is known of their terms; those of streams
            without totals as well.
        told: how many elements of a unit of each stream these are made of.
        stale: roots of families whose gains changed since they were solved.
        before: of all tensors that were read, with the model as it is.
        after: the same, with the model as it was arranged when they were read.
        gained: what streams collected since.
        meetings: how often the processes told each other what they had.
    """

    sweep: int
    step: int
    arrays: Mapping[str, IntArray]
    known: tuple[str, ...]
    totals: Mapping[str, torch.Tensor]
    scales: Mapping[str, tuple[int, int, float, int]]
    told: Mapping[str, int]
    stale: frozenset[str]
    before: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    after: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    gained: float = 0.0
    meetings: int = 0

    @property
    def bytes(self) -> int:
        """Of arrays and gains."""
        arrays = sum(array.nbytes for array in self.arrays.values())
        return arrays + sum(total.nbytes for total in self.totals.values())


@dataclass(frozen=True)
class Found:
    """What a match found.

    Args:
        arrays: int64 by class name.
        objective_before: sum of the inner products.
        objective_after: the same with the arranged model.
        distance_before: Euclidean distance.
        distance_after: the same with the arranged model.
        sweeps: that were made.
        settled: whether nothing could move any more.
    """

    arrays: Mapping[str, IntArray]
    objective_before: float
    objective_after: float
    distance_before: float
    distance_after: float
    sweeps: int
    settled: bool


@dataclass(frozen=True)
class _Step:
    """What a step of a stream adds.

    Args:
        counted: in tensors that were compared already.
        all: in all tensors.
        scale: of the numbers that this is the difference of.
    """

    counted: float
    all: float
    scale: float


class FileMatch:
    """A match on its way.

    Args:
        problem: what is known of the tensors.
        schedule: of a sweep.
        reference: reads tensors of the reference.
        model: reads tensors of the model.
        keep: called after steps with how far the match is, if enough was read since the last time
            to be worth it.
        since: where to go on; from the start when left out.
        ranks: the processes that share the work.
    """

    def __init__(
        self,
        problem: FileProblem,
        schedule: Schedule,
        reference: Read,
        model: Read,
        keep: Callable[[Progress], None] = lambda progress: None,
        since: Progress | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.problem, self.schedule = problem, schedule
        self._reference, self._model, self._keep = reference, model, keep
        movable = [name for names in problem.roots.values() for name in names]
        start = since or Progress(
            1,
            0,
            identity_arrays(problem.classes),
            tuple(c.name for c in problem.classes if c.name not in movable),
            {},
            {},
            {},
            frozenset(problem.roots),
        )
        self.sweep, self._first = start.sweep, start.step
        self.placement = Placement(start.arrays, start.known)
        self._ranks = ranks
        self._share = deal(problem, schedule, ranks.count)[ranks.number]
        self._exponents = {name: scale[0] for name, scale in start.scales.items()}
        self._totals = {name: self._sum(name) for name in start.totals}
        for name, total in start.totals.items():
            found = self._totals[name]
            found.numbers.copy_(total)
            found.exponent, found.bound, found.largest, found.terms = start.scales[name]
        self._told = dict(start.told)
        self._stale = set(start.stale)
        self._before: Sums = dict(start.before)
        self._after: Sums = dict(start.after)
        self._gained, self._meetings = start.gained, start.meetings
        self._inside: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._cached: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._kept = frozenset(schedule.kept)
        self._unsaved = 0
        self._neighbours = {root: problem.neighbours(root) for root in problem.roots}

    def run(self, most_sweeps: int) -> Found:
        """Sweep until nothing moves.

        Args:
            most_sweeps: the most sweeps to make.

        Raises:
            InputError: a tensor holds values that are not finite.
        """
        while True:
            self._sweep()
            if not self._stale or self.sweep >= most_sweeps:
                break
            self.sweep += 1
        return self._found()

    def progress(self, step: int) -> Progress:
        """How far it is.

        Args:
            step: the next step of the sweep.
        """
        placement, totals = self.placement, self._totals
        scales = {name: (exponent, 0, 0.0, 0) for name, exponent in self._exponents.items()}
        return Progress(
            self.sweep,
            step,
            dict(placement.arrays),
            tuple(placement.stamps),
            {name: total.numbers for name, total in totals.items()},
            scales | {n: (t.exponent, t.bound, t.largest, t.terms) for n, t in totals.items()},
            dict(self._told),
            frozenset(self._stale),
            dict(self._before),
            dict(self._after),
            self._gained,
            self._meetings,
        )

    def _sweep(self) -> None:
        steps = list(self._steps())
        first, self._first = self._first, 0
        if first == 0:
            self._begin()
        for name in self._needed_at(first):
            self._inside[name] = self._fetch(name)
        for number, step in enumerate(steps):
            if number < first:
                continue
            step()
            give_back_memory()
            progress = self.progress(number + 1)
            if self._unsaved >= _SIXTEENTH * progress.bytes and number + 1 < len(steps):
                self._keep(progress)
                self._unsaved = 0

    def _begin(self) -> None:
        """Nothing is summed up yet."""
        self._gained = 0.0
        self._told = dict.fromkeys(self.schedule.streams, 0)
        self._totals = {stream: self._sum(stream) for stream in self.schedule.streams}

    def _sum(self, stream: str) -> ExactSum:
        """Gains of a stream, without terms."""
        size = len(self.placement.arrays[stream])
        dtype = self._dtype(stream)
        return ExactSum(size, dtype, self._exponents.get(stream, exponent_for(0.0)))

    def _dtype(self, stream: str) -> torch.dtype:
        sides = (s for n in self.problem.tensors[stream] for s in self.problem.sides[n])
        wide = any(side.dtype.itemsize >= _WIDE for side in sides)
        return torch.float64 if wide else torch.float32

    def _steps(self) -> Iterator[Callable[[], None]]:
        """What a sweep consists of; the same steps whenever it is asked."""
        schedule, share = self.schedule, self._share
        if self.sweep == 1:
            yield from (partial(self._look_at, stream) for stream in schedule.streams)
            yield from (partial(self._pass, part) for part in share.fixed)
        yield from (partial(self._pass, part) for part in share.pure)
        if self.sweep == 1:
            yield self._start
        yield from (partial(self._visit, k) for k in share.visits)
        yield self._exchange
        yield from (partial(self._end, stream) for stream in schedule.streams)
        yield self._finish

    def _needed_at(self, step: int) -> tuple[str, ...]:
        """Names of tensors that earlier steps left in memory."""
        before = len(self._share.pure)
        if self.sweep == 1:
            before += len(self.schedule.streams) + len(self._share.fixed) + 1
        return self.schedule.carried(self._share.visits[: max(step - before, 0)])

    # What is read.

    def _fetch(self, name: str, rows: slice | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if rows is None and name in self._cached:
            return self._cached[name]
        groups, first = self.problem.every.get(name, ()), rows.start if rows is not None else 0
        one, two = (read(name, rows) for read in (self._reference, self._model))
        both = counted(one, groups, first), counted(two, groups, first)
        self._unsaved += both[0].nbytes + both[1].nbytes
        if rows is None and name in self._kept:
            self._cached[name] = both
        return both

    def _read(self, part: Part) -> Tensors:
        return {name: self._fetch(name, part.rows) for name in part.names}

    # The steps.

    def _look_at(self, stream: str) -> None:
        """Decide a stream by a part of its tensors, so that others are compared as they will lie.

        What is found counts only until all of them were read. One process looks, for all.
        """
        self._meetings += 1
        look = first_look(self.problem, self.schedule, stream)
        seen: tuple[IntArray | None, float] = (None, 0.0)
        if look is not None and not self._ranks.number:
            seen = self._seen(stream, look)
        found, most = self._ranks.every(seen)[0]
        self._exponents[stream] = self._totals[stream].exponent = exponent_for(most)
        if found is not None:
            self.placement.set({stream: found})

    def _seen(self, stream: str, part: Part) -> tuple[IntArray | None, float]:
        """What a part of a tensor says about a stream, if that is clear, and its largest gain."""
        tensors = self._read(part)
        for name, sides in tensors.items():
            closeness_of(name, *sides)  # which refuses what is not finite
        total, told = self._term(stream, tensors)
        most = max(abs(float(end)) for end in total.aminmax())
        if not math.isfinite(most) or not self._is_clear(stream, told):
            return None, most if math.isfinite(most) else 0.0
        return solved(total, self.placement.arrays[stream], known=False)[0], most

    def _is_clear(self, stream: str, told: int) -> bool:
        size = len(self.placement.arrays[stream])
        return Evidence(math.sqrt(told), math.sqrt(2 * math.log(max(2, size)))).is_clear

    def _term(self, stream: str, tensors: Tensors) -> tuple[torch.Tensor, int]:
        """What some tensors add to the gains of a stream, and how many elements tell it."""
        size = len(self.placement.arrays[stream])
        term = torch.zeros(size, size, dtype=self._dtype(stream))
        return term, add_gains(self.problem, stream, tensors, self.placement, term)

    def _holding(self, stream: str, part: Part) -> Tensors:
        """Those tensors of a part that hold a stream."""
        mine = tuple(n for n in part.names if stream in self.problem.held.get(n, ()))
        return self._read(Part(mine, part.rows, 0)) if mine else {}

    def _pass(self, part: Part) -> None:
        """Compare tensors that no visit needs, and add them to the gains of their streams."""
        tensors = self._read(part)
        for name in tensors:
            self._compare(part, name, tensors)
        for stream in self.schedule.streams:
            mine = {n: t for n, t in tensors.items() if stream in self.problem.held.get(n, ())}
            if mine:
                term, told = self._term(stream, mine)
                self._totals[stream].add(term)
                self._told[stream] += told

    def _compare(self, part: Part, name: str, tensors: Tensors) -> None:
        """Compare a part of a tensor, as it is if that was not done, and as it lies now."""
        a, b = tensors[name]
        label = part.label(name)
        if label not in self._before:
            self._before[label] = closeness_of(name, a, b)
        now = moved(b, self.problem.layout.get(name, ()), self.placement.arrays)
        self._after[label] = closeness_of(name, a, now)

    def _start(self) -> None:
        """Decide the streams by what is theirs alone, and then by what they have in common."""
        self._meetings += 1
        waiting = list(self.schedule.streams)
        self._told = {s: sum(self._ranks.every(told)) for s, told in self._told.items()}
        for stream in [s for s in waiting if self._is_clear(s, self._told[s])]:
            self._solve(stream, self._summed(stream, partial(self._fill_pure, stream)))
            waiting.remove(stream)
        while waiting:
            found = [s for s in waiting if self._decided_by_others(s)]
            if not found:
                break
            waiting = [s for s in waiting if s not in found]

    def _summed(self, stream: str, fill: Callable[[ExactSum], None]) -> torch.Tensor:
        """The gains of a stream over all processes; `fill` would add all terms of this one."""
        gains = self._totals[stream].sum_up(self._ranks, fill)
        self._exponents[stream] = self._totals[stream].exponent
        return gains

    def _fill_pure(self, stream: str, total: ExactSum) -> None:
        for part in self._share.pure:
            tensors = self._holding(stream, part)
            if tensors:
                total.add(self._term(stream, tensors)[0])

    def _fill_visited(self, stream: str, total: ExactSum) -> None:
        for number in self._share.visits:
            names = [
                name
                for name in self.schedule.visits[number].settles
                if name not in self.schedule.shared and stream in self.problem.held[name]
            ]
            if names:
                total.add(self._term(stream, {n: self._fetch(n) for n in names})[0])

    def _fill_shared(
        self, stream: str, names: Collection[str], total: ExactSum, sign: int = 1
    ) -> int:
        """Add tensors that hold other streams as well; returns how many elements tell this one."""
        every = 0
        for part in self._share.shared:
            (name,) = part.names
            if name in names:
                tensors = self._read(part)
                if self._last_stream_of(name) == stream or part.label(name) not in self._before:
                    self._compare(part, name, tensors)
                term, told = self._term(stream, tensors)
                total.add(term, sign)
                every += told
        return every

    def _decided_by_others(self, stream: str) -> bool:
        """Decide a stream by what it shares with those that are decided, if that is clear."""
        known = self.placement.stamps
        names = [
            name
            for name in self.schedule.shared
            if stream in self.problem.held[name]
            and all(root in known for root in self.problem.held[name] if root != stream)
        ]
        if not names:
            return False
        more_gains = self._sum(stream)

        def fill(total: ExactSum) -> None:
            self._fill_shared(stream, names, total)

        told = self._fill_shared(stream, names, more_gains)
        told = self._told[stream] + sum(self._ranks.every(told))
        if not self._is_clear(stream, told):
            return False
        total = self._summed(stream, partial(self._fill_pure, stream))
        every = total + more_gains.sum_up(self._ranks, fill)
        now = self.placement.arrays[stream]
        found, _ = solved(every, now, known=False)
        self._gained += more(total, found, now)
        self.placement.set({stream: found})
        return True

    def _visit(self, number: int) -> None:
        """Solve a family, and let go of the tensors that no later visit needs."""
        item = self.schedule.visits[number]
        for name in item.reads:
            self._inside[name] = self._fetch(name)
            self._compare_first(name)
        if item.root in self._stale:
            names = self.problem.tensors[item.root]
            changed = visit(
                self.problem, item.root, {n: self._inside[n] for n in names}, self.placement
            )
            self._stale.discard(item.root)
            self._note(item.root, changed)
        self._settle(item.settles)

    def _compare_first(self, name: str) -> None:
        """What several streams hold counts when they are solved, perhaps in parts."""
        if name not in self._before:
            found = closeness_of(name, *self._inside[name])
            if name not in self.schedule.shared:
                self._before[name] = found

    def _settle(self, names: Sequence[str]) -> None:
        """Compare tensors as they lie now, add them to the gains of streams, and let them go."""
        for stream in self.schedule.streams:
            mine = {
                name: self._inside[name]
                for name in names
                if name not in self.schedule.shared and stream in self.problem.held[name]
            }
            if mine:
                self._totals[stream].add(self._term(stream, mine)[0])
            del mine
        for name in names:
            a, b = self._inside.pop(name)
            if name not in self.schedule.shared:
                now = moved(b, self.problem.layout[name], self.placement.arrays)
                self._after[name] = closeness_of(name, a, now)

    def _exchange(self) -> None:
        """Tell other processes what visits decided, and hear what theirs did."""
        self._meetings += 1
        mine = {self.schedule.visits[k].root for k in self._share.visits}
        names = [name for root in mine for name in self.problem.roots[root]]
        known = self.placement.stamps
        arrays = {name: self.placement.arrays[name] for name in names if name in known}
        stale = {root for root in self._stale if root in mine or root in self.schedule.streams}
        every = self._ranks.every((arrays, stale))
        for k, (theirs, _) in enumerate(every):
            if k != self._ranks.number:
                self.placement.set(theirs)
        self._stale = {root for _, roots in every for root in roots}

    def _end(self, stream: str) -> None:
        """Solve a stream, with all of the sweep in its gains."""
        self._meetings += 1
        names = [n for n in self.schedule.shared if stream in self.problem.held[n]]
        # What another stream holds that is solved later is compared then, when it lies still.
        last = {name for name in names if self._last_stream_of(name) == stream}
        rest = [name for name in names if name not in last]

        def fill_passing(total: ExactSum) -> None:
            self._fill_shared(stream, rest, total)

        def fill(total: ExactSum) -> None:
            self._fill_pure(stream, total)
            self._fill_visited(stream, total)
            self._fill_shared(stream, last, total)

        passing = None
        if rest:
            sums = self._sum(stream)
            fill_passing(sums)
            passing = sums.sum_up(self._ranks, fill_passing)
        self._fill_shared(stream, last, self._totals[stream])
        total = self._summed(stream, fill)
        self._solve(stream, total, passing, [n for n in names if self._meets_itself(n, stream)])
        del self._totals[stream]

    def _last_stream_of(self, name: str) -> str:
        return [s for s in self.schedule.streams if s in self.problem.held[name]][-1]

    def _meets_itself(self, name: str, stream: str) -> bool:
        return self.problem.held[name].count(stream) > 1

    def _solve(
        self,
        stream: str,
        total: torch.Tensor,
        passing: torch.Tensor | None = None,
        itself: Sequence[str] = (),
    ) -> None:
        """Take the best order for the gains of a stream, if it is better than the present one."""
        now = self.placement.arrays[stream]
        known = stream in self.placement.stamps
        found, gain = solved(total if passing is None else total + passing, now, known=known)
        # Machines of other kinds may break ties in other ways.
        found = self._ranks.every(found)[0]
        if passing is not None:
            gain = more(total, found, now)
        if itself and not np.array_equal(found, now):
            step = self._step(stream, found, (total, passing), itself)
            gain = step.counted
            if known and step.all <= ROUNDING * step.scale:
                found, gain = now, 0.0
        self._gained += gain
        changed = self.placement.set({stream: found})
        self._stale.discard(stream)
        self._note(stream, changed)

    def _step(
        self,
        stream: str,
        found: IntArray,
        gains: tuple[torch.Tensor, torch.Tensor | None],
        itself: Sequence[str],
    ) -> _Step:
        """What a step adds, where gains along one axis were made with the other one held."""
        now = self.placement.arrays[stream]
        # What is not decided yet lies as it is.
        arrays = self.placement.arrays
        old, new = (Placement(x, x) for x in (arrays, {**arrays, stream: found}))
        changes: list[tuple[float, float, float, bool]] = []
        for part in self._share.shared:
            (name,) = part.names
            if name in itself:
                tensors = self._read(part)
                one, two = (agreement(self.problem, tensors, p) for p in (old, new))
                is_last = self._last_stream_of(name) == stream
                promised = more(self._term(stream, tensors)[0], found, now)
                changes.append((one, two, promised, is_last))
        steps = [change for mine in self._ranks.every(changes) for change in mine]
        counted, others = (
            math.fsum(x for one, two, p, last in steps if last is is_last for x in (two, -one, -p))
            for is_last in (True, False)
        )
        scale = math.fsum(abs(x) for one, two, _, _ in steps for x in (one, two))
        total, passing = gains
        counted += more(total, found, now)
        others += 0.0 if passing is None else more(passing, found, now)
        return _Step(counted, counted + others, scale)

    def _finish(self) -> None:
        """What nothing decides stays as it is."""
        rest = self.placement.decide_rest()
        roots = {root for root, names in self.problem.roots.items() if not rest.isdisjoint(names)}
        for root in roots:
            self._note(root, rest)

    def _note(self, root: str, changed: set[str]) -> None:
        """Remember whose gains a change concerns."""
        if changed:
            self._stale |= {r for r, near in self._neighbours.items() if root in near}

    def _found(self) -> Found:
        parts = self._ranks.every((self._before, self._after))
        before, after = (
            [math.fsum(sums[k] for every in parts for sums in every[at].values()) for k in range(2)]
            for at in range(2)
        )
        square = max(0.0, after[1] - 2 * self._gained)
        return Found(
            dict(self.placement.arrays),
            before[0],
            after[0] + self._gained,
            math.sqrt(before[1]),
            math.sqrt(square),
            self.sweep,
            not self._stale,
        )
