"""Weight matching of two checkpoints that pass through memory; `schedule.py` says in which order.

Exact coordinate descent: a visited family is solved while its tensors are in memory and the streams
are held; each tensor that no later visit needs adds its share, with what was just decided, to the
gains of its streams; at the end of the sweep the streams are solved. Nothing else is read for the
figures: both distances and both inner products are summed on the way, and what a stream's step adds
is in its gains. It is over when a sweep leaves nothing that could move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import torch

from fxrebasin.indexing import identity_arrays
from fxrebasin.layout import IntArray
from fxrebasin.passes.match.closeness import closeness_of
from fxrebasin.solvers.assignment import ROUNDING
from fxrebasin.solvers.families import Evidence
from fxrebasin.solvers.placement import Placement
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import BLOCK, Schedule
from fxrebasin.streaming.sweeping import Tensors, add_gains, agreement, more, moved, solved, visit

Read: TypeAlias = Callable[[str, slice | None], torch.Tensor]
"""From a name, and a range of rows or None, to a tensor in memory of its own."""
Sums: TypeAlias = dict[str, tuple[float, float]]
"""Inner product and squared distance, by tensor name."""

_NOTHING = (0.0, 0.0)
_SIXTEENTH = 16


@dataclass(frozen=True)
class Progress:
    """How far a match is: everything that is needed to go on with it.

    Args:
        sweep: that is being made, from 1.
        step: the number of its next step.
        arrays: int64 by class name.
        known: names of the classes that are decided.
        totals: gains of the streams, as far as they are summed up in this sweep.
        told: how many elements of a unit of each stream these are made of.
        stale: roots of families whose gains changed since they were solved.
        before: of all tensors that were read, with the model as it is.
        after: the same, with the model as it was arranged when they were read.
        gained: what streams collected since.
    """

    sweep: int
    step: int
    arrays: Mapping[str, IntArray]
    known: tuple[str, ...]
    totals: Mapping[str, torch.Tensor]
    told: Mapping[str, int]
    stale: frozenset[str]
    before: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    after: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    gained: float = 0.0

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
    """

    def __init__(
        self,
        problem: FileProblem,
        schedule: Schedule,
        reference: Read,
        model: Read,
        keep: Callable[[Progress], None] = lambda progress: None,
        since: Progress | None = None,
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
            frozenset(problem.roots),
        )
        self.sweep, self._first = start.sweep, start.step
        self.placement = Placement(start.arrays, start.known)
        self._totals = {name: total.clone() for name, total in start.totals.items()}
        self._told = dict(start.told)
        self._stale = set(start.stale)
        self._before: Sums = dict(start.before)
        self._after: Sums = dict(start.after)
        self._gained = start.gained
        self._inside: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._cached: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._kept = frozenset(schedule.kept)
        self._unsaved = 0
        self._visited = {name for v in schedule.visits for name in v.reads}
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
        placement = self.placement
        return Progress(
            self.sweep,
            step,
            dict(placement.arrays),
            tuple(placement.stamps),
            dict(self._totals),
            dict(self._told),
            frozenset(self._stale),
            dict(self._before),
            dict(self._after),
            self._gained,
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
            progress = self.progress(number + 1)
            if self._unsaved >= _SIXTEENTH * progress.bytes and number + 1 < len(steps):
                self._keep(progress)
                self._unsaved = 0

    def _begin(self) -> None:
        """Nothing is summed up yet."""
        self._gained = 0.0
        self._told = dict.fromkeys(self.schedule.streams, 0)
        sizes = {c.name: c.size for c in self.problem.classes}
        for stream in self.schedule.streams:
            wide = any(
                side.dtype.itemsize >= 8
                for name in self.problem.tensors[stream]
                for side in self.problem.sides[name]
            )
            dtype = torch.float64 if wide else torch.float32
            self._totals[stream] = torch.zeros(sizes[stream], sizes[stream], dtype=dtype)

    def _steps(self) -> Iterator[Callable[[], None]]:
        """What a sweep consists of; the same steps whenever it is asked."""
        schedule = self.schedule
        if self.sweep == 1:
            yield from (partial(self._look_at, stream) for stream in schedule.streams)
            yield from (partial(self._pass, name) for name in schedule.fixed)
        yield from (partial(self._pass, name) for name in schedule.pure)
        if self.sweep == 1:
            yield self._start
        yield from (partial(self._visit, k) for k in range(len(schedule.visits)))
        yield from (partial(self._end, stream) for stream in schedule.streams)
        yield self._finish

    def _needed_at(self, step: int) -> tuple[str, ...]:
        """Names of tensors that earlier steps left in memory."""
        schedule = self.schedule
        before = len(schedule.pure)
        if self.sweep == 1:
            before += len(schedule.streams) + len(schedule.fixed) + 1
        return schedule.carried(min(max(step - before, 0), len(schedule.visits)))

    # What is read.

    def _fetch(self, name: str, rows: slice | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if rows is None and name in self._cached:
            return self._cached[name]
        both = self._reference(name, rows), self._model(name, rows)
        self._unsaved += both[0].nbytes + both[1].nbytes
        if rows is None and name in self._kept:
            self._cached[name] = both
        return both

    def _parts(self, name: str) -> Iterator[Tensors]:
        """A tensor, a few rows at a time where it need not be whole."""
        one, two = self.problem.sides[name]
        widest = max(one.bytes_of_row, two.bytes_of_row)
        if max(one.bytes, two.bytes) <= BLOCK or not self.problem.in_rows(name):
            yield {name: self._fetch(name)}
            return
        count, step = two.shape[0], max(1, BLOCK // widest)
        for start in range(0, count, step):
            yield {name: self._fetch(name, slice(start, min(start + step, count)))}

    # The steps.

    def _look_at(self, stream: str) -> None:
        """Decide a stream by a part of its tensors, so that others are compared as they will lie.

        What is found counts only until all of them were read.
        """
        names = [n for n in self.schedule.pure if stream in self.problem.held[n]]
        if not names:
            return
        largest = max(names, key=lambda name: self.problem.bytes_of([name]))
        part = next(self._parts(largest))
        closeness_of(largest, *part[largest])  # which refuses what is not finite
        total = torch.zeros_like(self._totals[stream])
        told = add_gains(self.problem, stream, part, self.placement, total)
        if self._is_clear(stream, told):
            found, _ = solved(total, self.placement.arrays[stream], known=False)
            self.placement.set({stream: found})

    def _is_clear(self, stream: str, told: int) -> bool:
        size = len(self.placement.arrays[stream])
        return Evidence(math.sqrt(told), math.sqrt(2 * math.log(max(2, size)))).is_clear

    def _pass(self, name: str) -> None:
        """Compare a tensor that no visit needs, and add it to the gains of its stream."""
        before, after = self._before.get(name), _NOTHING
        first = _NOTHING
        held = self.problem.held.get(name, ())
        stream = next((s for s in self.schedule.streams if s in held), "")
        for part in self._parts(name):
            a, b = part[name]
            if before is None:
                first = _sum(first, closeness_of(name, a, b))
            groups = self.problem.layout.get(name, ())
            now = moved(b, groups, self.placement.arrays)
            after = _sum(after, closeness_of(name, a, now))
            if stream:
                told = add_gains(self.problem, stream, part, self.placement, self._totals[stream])
                self._told[stream] += told
        self._before[name] = before or first
        self._after[name] = after

    def _start(self) -> None:
        """Decide the streams by what is theirs alone, and then by what they have in common."""
        waiting = list(self.schedule.streams)
        for stream in [s for s in waiting if self._is_clear(s, self._told[s])]:
            self._solve(stream)
            waiting.remove(stream)
        while waiting:
            found = [s for s in waiting if self._decided_by_others(s)]
            if not found:
                break
            waiting = [s for s in waiting if s not in found]

    def _decided_by_others(self, stream: str) -> bool:
        """Decide a stream by what it shares with those that are decided, if that is clear."""
        known = self.placement.stamps
        names = [
            name
            for name in self.schedule.shared
            if stream in self.problem.held[name]
            and all(root in known for root in self.problem.held[name] if root != stream)
        ]
        total = self._totals[stream].clone()
        told = self._told[stream]
        for name in names:
            for part in self._parts(name):
                closeness_of(name, *part[name])
                told += add_gains(self.problem, stream, part, self.placement, total)
        if not names or not self._is_clear(stream, told):
            return False
        found, _ = solved(total, self.placement.arrays[stream], known=False)
        self._gained += more(self._totals[stream], found, self.placement.arrays[stream])
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
        for name in item.settles:
            self._settle(name)

    def _compare_first(self, name: str) -> None:
        if name not in self._before:
            self._before[name] = closeness_of(name, *self._inside[name])

    def _settle(self, name: str) -> None:
        """Compare a tensor as it lies now, add it to the gains of its stream, and let it go."""
        a, b = self._inside.pop(name)
        now = moved(b, self.problem.layout[name], self.placement.arrays)
        self._after[name] = closeness_of(name, a, now)
        del now
        if name in self.schedule.shared:
            return
        for stream in self.schedule.streams:
            if stream in self.problem.held[name]:
                add_gains(
                    self.problem, stream, {name: (a, b)}, self.placement, self._totals[stream]
                )

    def _end(self, stream: str) -> None:
        """Solve a stream, with all of the sweep in its gains."""
        total = self._totals[stream]
        names = [n for n in self.schedule.shared if stream in self.problem.held[n]]
        # What another stream holds that is solved later is compared then, when it lies still.
        last = {name for name in names if self._last_stream_of(name) == stream}
        passing = torch.zeros_like(total) if len(last) < len(names) else None
        for name in names:
            before, after = _NOTHING, _NOTHING
            gains = total if name in last or passing is None else passing
            for part in self._parts(name):
                a, b = part[name]
                before = _sum(before, closeness_of(name, a, b))
                if name in last:
                    now = moved(b, self.problem.layout[name], self.placement.arrays)
                    after = _sum(after, closeness_of(name, a, now))
                add_gains(self.problem, stream, part, self.placement, gains)
            self._before.setdefault(name, before)
            if name in last:
                self._after[name] = after
        self._solve(stream, passing, [n for n in names if self._meets_itself(n, stream)])
        del self._totals[stream]

    def _last_stream_of(self, name: str) -> str:
        return [s for s in self.schedule.streams if s in self.problem.held[name]][-1]

    def _meets_itself(self, name: str, stream: str) -> bool:
        return self.problem.held[name].count(stream) > 1

    def _solve(
        self, stream: str, passing: torch.Tensor | None = None, itself: Sequence[str] = ()
    ) -> None:
        """Take the best order for the gains of a stream, if it is better than the present one."""
        total, now = self._totals[stream], self.placement.arrays[stream]
        known = stream in self.placement.stamps
        found, gain = solved(total if passing is None else total + passing, now, known=known)
        if passing is not None:
            gain = more(total, found, now)
        if itself and not np.array_equal(found, now):
            step = self._step(stream, found, passing, itself)
            gain = step.counted
            if known and step.all <= ROUNDING * step.scale:
                found, gain = now, 0.0
        self._gained += gain
        changed = self.placement.set({stream: found})
        self._stale.discard(stream)
        self._note(stream, changed)

    def _step(
        self, stream: str, found: IntArray, passing: torch.Tensor | None, itself: Sequence[str]
    ) -> _Step:
        """What a step adds, where gains along one axis were made with the other one held."""
        total, now = self._totals[stream], self.placement.arrays[stream]
        # What is not decided yet lies as it is.
        arrays = self.placement.arrays
        old, new = (Placement(x, x) for x in (arrays, {**arrays, stream: found}))
        counted = others = scale = 0.0
        for name in itself:
            is_last = self._last_stream_of(name) == stream
            gains = total if is_last or passing is None else passing
            part: Tensors = {name: self._fetch(name)}
            add_gains(self.problem, stream, part, self.placement, gains, sign=-1)
            one, two = (agreement(self.problem, part, p) for p in (old, new))
            scale += abs(two) + abs(one)
            counted += two - one if is_last else 0.0
            others += 0.0 if is_last else two - one
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
        before, after = (
            [math.fsum(sums[k] for sums in every.values()) for k in range(2)]
            for every in (self._before, self._after)
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


def _sum(one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    return one[0] + two[0], one[1] + two[1]
