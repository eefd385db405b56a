"""One time through a model with all batches, in which layer after layer is corrected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from typing import TypeAlias

import torch
from torch import nn

from fxrebasin.merge.data import Data
from fxrebasin.merge.lanes import Change, Lane, NotAbreastError, end, release
from fxrebasin.merge.moments import Moments
from fxrebasin.merge.overflow import Belongings, Overflow, room_for_overflow
from fxrebasin.merge.sites import Site, measuring
from fxrebasin.merge.survey import Survey
from fxrebasin.running.batches import Batch, Runner

MOST_HELD = 4 * 2**30
"""Memory for batches that go through a model side by side, in bytes; the others' are in a file."""

Correct: TypeAlias = Callable[[Site, Moments], float]
"""Corrects a layer and says by how much it was off, relative to its scale."""
Output: TypeAlias = Callable[[Site, torch.Tensor], torch.Tensor]
"""From the output of a layer that has just been corrected to what it would be now."""


class Sweep:
    """One time through the model, in which every site is measured and corrected.

    Args:
        model: to run; the correction changes it.
        data: to run it on.
        sites: in the order in which they run.
        known: of these sites.
        correct: what corrects a layer.
        output: what a corrected layer returns, needed for sites that are measured at their output.

    Attributes:
        off: by how much a layer was off, at most.
        missing: bytes of a temporary file without which batches run anew for each layer.
        exact: whether every site was measured once all before it had been corrected.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        sites: Sequence[Site],
        known: Survey,
        correct: Correct,
        output: Output | None,
    ) -> None:
        self._model, self._data, self._sites, self._known = model, data, sites, known
        self._correct, self._output = correct, output
        self._in_memory = known.fitting(MOST_HELD)
        room = 0 if known.shared else room_for_overflow()
        self._abreast = known.side_by_side(MOST_HELD + room)
        self.missing = 0
        if not known.shared and self._abreast < known.side_by_side(sum(known.held)):
            self.missing = sum(known.held) - MOST_HELD
        self._overflow: Overflow | None = None
        self._left = Counter(name for path in known.paths[: self._abreast] for name in path)
        self._found: dict[str, Moments] = {}
        self._lanes: list[Lane] = []
        self.off, self.exact = 0.0, True

    def run(self, report: Callable[[int], None]) -> None:
        """Measure and correct.

        Args:
            report: told how many sites are done.

        Raises:
            InputError: the model does not run on a batch.
            NotAbreastError: it does not where others wait meanwhile.
        """
        if not self._abreast:
            self.exact = max(self._known.calls.values()) == 1
            for done, site in enumerate(self._sites):
                report(done)
                self._add_anew(site)
                self._settle(site)
            return
        with self._data.running(self._model) as (running, batches), ExitStack() as stack:
            if self._in_memory < self._abreast:
                self._overflow = stack.enter_context(closing(Overflow()))
            stack.callback(end, self._lanes)
            try:
                for batch in islice(batches, self._abreast):
                    self._lanes.append(self._lane(running, self._sites, batch))
                    self._lanes[-1].go_on()
                self._through(running, report)
            except NotAbreastError:
                release(self._lanes)
                raise
        for site in self._sites:  # those that were called more or less often than before
            if self._left[site.name] and site.name in self._found:
                self._settle(site)

    def _lane(self, running: Runner, sites: Sequence[Site], batch: Batch) -> Lane:
        """A batch on its way. What the first ones hold stays in memory, as much as fits there."""
        belongings = None
        if self._overflow is not None:
            waits_in_file = self._in_memory <= batch.number < self._abreast
            room = self._known.held[batch.number] if waits_in_file else None
            belongings = Belongings(self._overflow, room)
        return Lane(running, self._model, sites, batch, belongings)

    def _through(self, running: Runner, report: Callable[[int], None]) -> None:
        """Let batches go on from site to site until all are through."""
        while waiting := [lane for lane in self._lanes if lane.site is not None]:
            site = self._next(waiting)
            there = [lane for lane in waiting if lane.site == site]
            report(self._sites.index(site))
            complete = self._left[site.name] == len(there)
            self.exact &= complete and site.name not in self._found
            self._left[site.name] -= len(there)
            for lane in there:
                self._add(site, lane.moments)
            change: Change | None = None
            if complete:
                self._add_anew(site)
                self._settle(site)
                running.keep(self._model.get_submodule(site.name))
                change = None if self._output is None else partial(self._output, site)
            for lane in there:
                lane.go_on(change)

    def _next(self, waiting: Sequence[Lane]) -> Site:
        """The first site where all are that come there; else the first where any are."""
        there = Counter(lane.site for lane in waiting)
        first = [site for site in self._sites if site in there]
        complete = [site for site in first if there[site] == self._left[site.name]]
        return (complete or first)[0]

    def _settle(self, site: Site) -> None:
        self.off = max(self.off, self._correct(site, self._found[site.name]))

    def _add(self, site: Site, moments: Moments | None) -> None:
        if moments is not None:
            before = self._found.get(site.name)
            self._found[site.name] = moments if before is None else before.pooled(moments)

    def _add_anew(self, site: Site) -> None:
        """What comes to a site of the batches that do not wait.

        They run to their ends, though what lies behind is of no use: an error that ends them in the
        middle of the model's code would leave locks held that it gives back at its end alone.
        """
        there = [path.count(site.name) > 0 for path in self._known.paths]
        if not any(there[self._abreast :]):
            return
        with self._data.running(self._model) as (running, batches):
            for batch in batches:
                if batch.number >= self._abreast and there[batch.number]:
                    self._add_batch(running, site, batch)

    def _add_batch(self, running: Runner, site: Site, batch: Batch) -> None:
        """What comes to a site of one batch.

        Where others wait in the middle of the model it has a thread as they have, so that it shows
        when it waits for what they hold.
        """
        if not self._abreast:
            with measuring(self._model, [site], self._add):
                running.call({}, batch)
            return
        lane = self._lane(running, [site], batch)
        try:
            lane.go_on()
            while lane.site is not None:
                self._add(site, lane.moments)
                lane.go_on()
        except NotAbreastError:
            release([*self._lanes, lane])
            raise
        finally:
            end([lane])
