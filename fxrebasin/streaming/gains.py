"""The gains of streams, summed up while their tensors pass, and again where that has to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial

import torch

from fxrebasin.ranks import Ranks
from fxrebasin.solvers.families import Evidence
from fxrebasin.solvers.placement import Placement
from fxrebasin.streaming.comparing import Comparing
from fxrebasin.streaming.dealing import Share
from fxrebasin.streaming.exact import ExactSum, exponent_for
from fxrebasin.streaming.fetching import Fetching
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import Schedule
from fxrebasin.streaming.states import Progress
from fxrebasin.streaming.sweeping import Tensors, add_gains

_WIDE = 8


class StreamGains:
    """What this process knows of the gains of each stream, and all of them together do.

    Args:
        problem: shapes, and where units are.
        schedule: of a sweep.
        share: what this process does of it.
        ranks: the processes that share the work.
        fetching: reads tensors.
        comparing: of those that are only read at the end of a sweep.
        placement: what is decided.
        since: where to go on.

    Attributes:
        told: how many elements of a unit of each stream its gains are made of.
    """

    def __init__(
        self,
        problem: FileProblem,
        schedule: Schedule,
        share: Share,
        ranks: Ranks,
        fetching: Fetching,
        comparing: Comparing,
        placement: Placement,
        since: Progress,
    ) -> None:
        self._problem, self._schedule, self._share = problem, schedule, share
        self._ranks, self._fetching, self._comparing = ranks, fetching, comparing
        self._placement = placement
        self._exponents = {name: scale[0] for name, scale in since.scales.items()}
        self._totals = {name: self.empty(name) for name in since.totals}
        for name, total in since.totals.items():
            found = self._totals[name]
            found.numbers.copy_(total)
            found.exponent, found.bound, found.largest, found.terms = since.scales[name]
        self.told = dict(since.told)

    def totals(self) -> dict[str, torch.Tensor]:
        """What this process has summed up, int64 by stream."""
        return {name: total.numbers for name, total in self._totals.items()}

    def scales(self) -> dict[str, tuple[int, int, float, int]]:
        """The exponents of units, and what is known of the terms; also of streams without any."""
        scales = {name: (exponent, 0, 0.0, 0) for name, exponent in self._exponents.items()}
        totals = self._totals.items()
        return scales | {n: (t.exponent, t.bound, t.largest, t.terms) for n, t in totals}

    def begin(self) -> None:
        """Nothing is summed up yet."""
        self.told = dict.fromkeys(self._schedule.streams, 0)
        self._totals = {stream: self.empty(stream) for stream in self._schedule.streams}

    def empty(self, stream: str) -> ExactSum:
        """Gains of a stream, without terms.

        Args:
            stream: the class.
        """
        size = len(self._placement.arrays[stream])
        dtype = self._dtype(stream)
        return ExactSum(size, dtype, self._exponents.get(stream, exponent_for(0.0)))

    def drop(self, stream: str) -> None:
        """Let go of the gains of a stream that was solved.

        Args:
            stream: the class.
        """
        del self._totals[stream]

    def scale_by(self, stream: str, largest: float) -> None:
        """Choose the unit of a stream's gains.

        Args:
            stream: the class.
            largest: magnitude in a first term; 0 if none is known.
        """
        self._exponents[stream] = self._totals[stream].exponent = exponent_for(largest)

    def _dtype(self, stream: str) -> torch.dtype:
        sides = (s for n in self._problem.tensors[stream] for s in self._problem.sides[n])
        wide = any(side.dtype.itemsize >= _WIDE for side in sides)
        return torch.float64 if wide else torch.float32

    def is_clear(self, stream: str, told: int) -> bool:
        """Whether so many elements of each unit tell the units of a stream apart.

        Args:
            stream: the class.
            told: how many they are.
        """
        size = len(self._placement.arrays[stream])
        return Evidence(math.sqrt(told), math.sqrt(2 * math.log(max(2, size)))).is_clear

    def term(self, stream: str, tensors: Tensors) -> tuple[torch.Tensor, int]:
        """What some tensors add to the gains of a stream, and how many elements tell it.

        Args:
            stream: the class.
            tensors: that hold it.
        """
        size = len(self._placement.arrays[stream])
        term = torch.zeros(size, size, dtype=self._dtype(stream))
        return term, add_gains(self._problem, stream, tensors, self._placement, term)

    def add(self, tensors: Tensors) -> None:
        """Add tensors that passed to the gains of the streams that they hold, but for what is read
        at the end of the sweep.

        Args:
            tensors: by name.
        """
        for stream in self._schedule.streams:
            mine = {n: t for n, t in tensors.items() if self._counts(stream, n)}
            if mine:
                term, told = self.term(stream, mine)
                self._totals[stream].add(term)
                self.told[stream] += told
            del mine

    def _counts(self, stream: str, name: str) -> bool:
        held = self._problem.held.get(name, ())
        return stream in held and name not in self._schedule.shared

    def share_told(self) -> None:
        """Count what all processes were told."""
        self.told = {s: sum(self._ranks.every(told)) for s, told in self.told.items()}

    def of_pure(self, stream: str) -> torch.Tensor:
        """The gains of a stream from the tensors that hold it alone, over all processes.

        Args:
            stream: the class.
        """
        return self._summed(stream, partial(self._fill_pure, stream))

    def of_some(self, stream: str, names: Collection[str]) -> tuple[ExactSum, int]:
        """Gains of a stream from tensors that hold others as well, and how many elements of all
        processes tell it; `joined` makes the sum over processes.

        Args:
            stream: the class.
            names: of the tensors.
        """
        found = self.empty(stream)
        told = self._fill_shared(stream, names, found)
        return found, self.told[stream] + sum(self._ranks.every(told))

    def joined(self, stream: str, names: Collection[str], total: ExactSum) -> torch.Tensor:
        """The sum over processes of gains from tensors that hold other streams as well.

        Args:
            stream: the class.
            names: of the tensors.
            total: what this process has of it.
        """

        def fill(sums: ExactSum) -> None:
            self._fill_shared(stream, names, sums)

        return total.sum_up(self._ranks, fill)

    def of_sweep(self, stream: str, names: Collection[str]) -> torch.Tensor:
        """The gains of a stream from all that passed, and some that other streams hold as well.

        Args:
            stream: the class.
            names: of these.
        """

        def fill(total: ExactSum) -> None:
            self._fill_pure(stream, total)
            self._fill_visited(stream, total)
            self._fill_shared(stream, names, total)

        self._fill_shared(stream, names, self._totals[stream])
        return self._summed(stream, fill)

    def of_shared(self, stream: str, names: Collection[str]) -> torch.Tensor:
        """The gains of a stream from tensors that hold other streams as well, by themselves.

        Args:
            stream: the class.
            names: of the tensors.
        """
        sums = self.empty(stream)
        self._fill_shared(stream, names, sums)
        return self.joined(stream, names, sums)

    def last_stream_of(self, name: str) -> str:
        """Of the streams that a tensor holds, the one that is solved last.

        Args:
            name: of the tensor.
        """
        return [s for s in self._schedule.streams if s in self._problem.held[name]][-1]

    def _summed(self, stream: str, fill: Callable[[ExactSum], None]) -> torch.Tensor:
        """The gains of a stream over all processes; `fill` would add all terms of this one."""
        gains = self._totals[stream].sum_up(self._ranks, fill)
        self._exponents[stream] = self._totals[stream].exponent
        return gains

    def _fill_pure(self, stream: str, total: ExactSum) -> None:
        for part in self._share.pure:
            tensors = self._fetching.holding(stream, part)
            if tensors:
                total.add(self.term(stream, tensors)[0])

    def _fill_visited(self, stream: str, total: ExactSum) -> None:
        for number in self._share.visits:
            settles = self._schedule.visits[number].settles
            names = [name for name in settles if self._counts(stream, name)]
            if names:
                total.add(self.term(stream, {n: self._fetching.both(n) for n in names})[0])

    def _fill_shared(self, stream: str, names: Collection[str], total: ExactSum) -> int:
        """Add tensors that hold other streams as well; returns how many elements tell this one."""
        every = 0
        for part in self._share.shared:
            (name,) = part.names
            if name in names:
                tensors = self._fetching.all_of(part)
                is_new = part.label(name) not in self._comparing.before
                if self.last_stream_of(name) == stream or is_new:
                    self._comparing.compare(part, name, tensors)
                term, told = self.term(stream, tensors)
                total.add(term)
                every += told
        return every
