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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fxrebasin.indexing import identity_arrays
from fxrebasin.layout import IntArray
from fxrebasin.passes.match.closeness import closeness_of
from fxrebasin.ranks import ALONE, Ranks
from fxrebasin.running.freed import give_back_memory
from fxrebasin.solvers.assignment import ROUNDING
from fxrebasin.solvers.placement import Placement
from fxrebasin.streaming.comparing import Comparing
from fxrebasin.streaming.dealing import Part, deal, first_look
from fxrebasin.streaming.fetching import Fetching, Read, Within
from fxrebasin.streaming.gains import StreamGains
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import Schedule
from fxrebasin.streaming.states import Found, Progress
from fxrebasin.streaming.sweeping import agreement, more, solved, visit

_SIXTEENTH = 16


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
        within: where the reference is a mean that the model is part of; the match never falls
            behind the order that the model has there.
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
        within: Within | None = None,
    ) -> None:
        self.problem, self.schedule = problem, schedule
        self._keep, self._is_arranged = keep, within is not None
        movable = [name for names in problem.roots.values() for name in names]
        decided = [c.name for c in problem.classes if self._is_arranged or c.name not in movable]
        start = since or Progress(
            1,
            0,
            {**identity_arrays(problem.classes), **(within.arrays if within else {})},
            tuple(decided),
            {},
            {},
            {},
            frozenset(problem.roots),
        )
        self.sweep, self._first = start.sweep, start.step
        self.placement = Placement(start.arrays, start.known)
        self._ranks = ranks
        self._share = deal(problem, schedule, ranks.count)[ranks.number]
        self._fetching = Fetching(problem, reference, model, schedule.kept, within)
        self._comparing = Comparing(
            problem, schedule.shared, self.placement, start.before, start.after
        )
        self._gains = StreamGains(
            problem,
            schedule,
            self._share,
            ranks,
            self._fetching,
            self._comparing,
            self.placement,
            start,
        )
        self._stale = set(start.stale)
        self._gained, self._meetings = start.gained, start.meetings
        self._inside: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
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
        return Progress(
            self.sweep,
            step,
            dict(self.placement.arrays),
            tuple(self.placement.stamps),
            self._gains.totals(),
            self._gains.scales(),
            dict(self._gains.told),
            frozenset(self._stale),
            dict(self._comparing.before),
            dict(self._comparing.after),
            self._gained,
            self._meetings,
        )

    def _sweep(self) -> None:
        steps = list(self._steps())
        first, self._first = self._first, 0
        if first == 0:
            self._gained = 0.0
            self._gains.begin()
        for name in self._needed_at(first):
            self._inside[name] = self._fetching.both(name)
        for number, step in enumerate(steps):
            if number < first:
                continue
            step()
            give_back_memory()
            progress = self.progress(number + 1)
            if self._fetching.fetched >= _SIXTEENTH * progress.bytes and number + 1 < len(steps):
                self._keep(progress)
                self._fetching.fetched = 0

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
        self._gains.scale_by(stream, most)
        if found is not None and not self._is_arranged:
            self.placement.set({stream: found})

    def _seen(self, stream: str, part: Part) -> tuple[IntArray | None, float]:
        """What a part of a tensor says about a stream, if that is clear, and its largest gain."""
        tensors = self._fetching.all_of(part)
        for name, sides in tensors.items():
            closeness_of(name, *sides)  # which refuses what is not finite
        total, told = self._gains.term(stream, tensors)
        most = max(abs(float(end)) for end in total.aminmax())
        if not math.isfinite(most) or not self._gains.is_clear(stream, told):
            return None, most if math.isfinite(most) else 0.0
        return solved(total, self.placement.arrays[stream], known=False)[0], most

    def _pass(self, part: Part) -> None:
        """Compare tensors that no visit needs, and add them to the gains of their streams."""
        tensors = self._fetching.all_of(part)
        for name in tensors:
            self._comparing.compare(part, name, tensors)
        self._gains.add(tensors)

    def _start(self) -> None:
        """Decide the streams by what is theirs alone, and then by what they have in common."""
        self._meetings += 1
        if self._is_arranged:
            return
        waiting = list(self.schedule.streams)
        self._gains.share_told()
        told = self._gains.told
        for stream in [s for s in waiting if self._gains.is_clear(s, told[s])]:
            self._solve(stream, self._gains.of_pure(stream))
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
        if not names:
            return False
        found_there, told = self._gains.of_some(stream, names)
        if not self._gains.is_clear(stream, told):
            return False
        pure = self._gains.of_pure(stream)
        every = pure + self._gains.joined(stream, names, found_there)
        now = self.placement.arrays[stream]
        found, _ = solved(every, now, known=False)
        self._gained += more(pure, found, now)
        self.placement.set({stream: found})
        return True

    def _visit(self, number: int) -> None:
        """Solve a family, and let go of the tensors that no later visit needs."""
        item = self.schedule.visits[number]
        for name in item.reads:
            self._inside[name] = self._fetching.both(name)
            self._comparing.compare_first(name, self._inside[name])
        if item.root in self._stale:
            names = self.problem.tensors[item.root]
            changed = visit(
                self.problem, item.root, {n: self._inside[n] for n in names}, self.placement
            )
            self._stale.discard(item.root)
            self._note(item.root, changed)
        self._settle(item.settles)

    def _settle(self, names: Sequence[str]) -> None:
        """Compare tensors as they lie now, add them to the gains of streams, and let them go."""
        self._gains.add({name: self._inside[name] for name in names})
        for name in names:
            both = self._inside.pop(name)
            if name not in self.schedule.shared:
                self._comparing.compare_settled(name, both)

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
        last = {name for name in names if self._gains.last_stream_of(name) == stream}
        rest = [name for name in names if name not in last]
        passing = self._gains.of_shared(stream, rest) if rest else None
        total = self._gains.of_sweep(stream, last)
        self._solve(stream, total, passing, [n for n in names if self._meets_itself(n, stream)])
        self._gains.drop(stream)

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
                tensors = self._fetching.all_of(part)
                one, two = (agreement(self.problem, tensors, p) for p in (old, new))
                is_last = self._gains.last_stream_of(name) == stream
                promised = more(self._gains.term(stream, tensors)[0], found, now)
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
        before, after = self._comparing.summed(self._ranks)
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
