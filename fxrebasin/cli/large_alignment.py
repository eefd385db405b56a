"""How checkpoints that do not fit into memory are brought into the order of the first one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from shutil import rmtree

import numpy as np

from fxrebasin.cli.aligning import Aligned
from fxrebasin.cli.ingredients import Ingredients
from fxrebasin.cli.large import METHOD, Room, found_in, planned
from fxrebasin.cli.large_run import How
from fxrebasin.cli.options import AS_THEY_ARE, ROUNDS
from fxrebasin.facts import counted
from fxrebasin.indexing import identity_arrays
from fxrebasin.merge.turns import Turn, settle
from fxrebasin.ranks import ALONE
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.reading import Checkpoint
from fxrebasin.streaming.aligning import Plan, plan_again, shapes_of
from fxrebasin.streaming.averaging import length_of, write_mean
from fxrebasin.streaming.dealing import spread
from fxrebasin.streaming.fetching import Within
from fxrebasin.streaming.opening import Opened
from fxrebasin.streaming.states import Found
from fxrebasin.streaming.unfinished import Unfinished

_MOST_ROUNDS = 100

Reports = dict[int, RebasinReport]


def plans_for(room: Room, how: How) -> dict[int, Plan]:
    """How each checkpoint is matched with the first; none where units stay as they are.

    Args:
        room: has the checkpoints.
        how: units are matched, checkpoints read, and the model run.
    """
    if how[0].method == AS_THEY_ARE:
        return {}
    return {index: planned(room, index, how[2]) for index in range(1, len(room.opened))}


def ingredients(
    room: Room, method: str | None, plans: Mapping[int, Plan], run: Unfinished, *, based: bool
) -> Ingredients:
    """The checkpoints without values, and the order of their units.

    Args:
        room: has the checkpoints.
        method: of matching.
        plans: of the matches.
        run: keeps what was found.
        based: whether the last checkpoint is the one that differences are taken from.
    """
    run.mark()
    found = _found(room, plans, run)
    if method == ROUNDS:
        found = _in_rounds(room, plans, found, run)
    reports = tuple(found.get(index) for index in range(len(room.opened)))
    permutations = tuple(None if r is None else r.permutation for r in reports)
    used = (method or METHOD) if plans else AS_THEY_ARE
    aligned = Aligned(used, permutations, reports)
    every = tuple(_without_values(room, index) for index in range(len(room.opened)))
    checkpoints = every[:-1] if based else every
    return Ingredients(room.bench, checkpoints, every[-1] if based else None, aligned)


def _found(room: Room, plans: Mapping[int, Plan], run: Unfinished) -> Reports:
    """Match each checkpoint with the first: many are dealt to processes, few are shared by them."""
    ranks = room.ranks
    if len(plans) < ranks.count:
        return {index: found_in(room, index, plan, run, ranks) for index, plan in plans.items()}
    mine = {index: found_in(room, index, plans[index], run, ALONE) for index in _dealt(room, plans)}
    every = {index: report for part in ranks.every(mine) for index, report in part.items()}
    return {index: every[index] for index in plans}


def _dealt(room: Room, plans: Mapping[int, Plan]) -> list[int]:
    """The checkpoints that this process matches."""
    owners = spread([plan.schedule.bytes_first for plan in plans.values()], room.ranks.count)
    pairs = zip(plans, owners, strict=True)
    return [index for index, owner in pairs if owner == room.ranks.number]


def _in_rounds(room: Room, plans: Mapping[int, Plan], found: Reports, run: Unfinished) -> Reports:
    """Match all checkpoints but the first with the mean of the others, again and again."""
    rounds = _Rounds(room, plans, found, run)
    settled = settle(rounds, _MOST_ROUNDS)
    rounds.forget_means()
    if settled:
        return rounds.orders
    note = f"Matching was stopped after {counted(_MOST_ROUNDS, 'round')}, before it had settled."
    return {k: replace(one, notes=(*one.notes, note)) for k, one in rounds.orders.items()}


@dataclass(frozen=True)
class _Mean:
    """A mean of all checkpoints, which is written when it is needed.

    Args:
        number: of those before it.
        reports: has the orders of the units.
    """

    number: int
    reports: Reports

    @property
    def name(self) -> str:
        """Of its folder, and of its length."""
        return f"mean-{self.number}"


class _Rounds:
    """Checkpoints that are aligned in rounds; what each match of a run found is kept.

    Args:
        room: has the checkpoints.
        plans: of the matches with the first.
        found: by these.
        run: keeps what is found.

    Attributes:
        orders: what was found last for each checkpoint.
        interrupted: never; a run that is interrupted can be gone on with.
    """

    def __init__(
        self, room: Room, plans: Mapping[int, Plan], found: Reports, run: Unfinished
    ) -> None:
        self.orders, self.interrupted = found, False
        self._room, self._plans, self._run = room, plans, run
        self._means = 0

    def mean(self, orders: Reports) -> _Mean:
        """The mean of all checkpoints, each in its order."""
        self._means += 1
        return _Mean(self._means, orders)

    def length(self, mean: _Mean) -> float:
        """Squared length of a mean, in what is compared."""
        ranks = self._room.ranks
        known = next((n for n in ranks.every(self._run.number(mean.name)) if n is not None), None)
        if known is None:
            layout = next(iter(self._plans.values())).problem.every
            known = length_of(self._written(mean), layout, ranks)
            if self._room.speaks:
                self._run.keep_number(mean.name, known)
        return known

    def turned(self, mean: _Mean, turn: Turn) -> Reports | None:
        """Match the checkpoints of a turn, each with the mean of the others; None if none moved."""
        room, run = self._room, self._run
        self.forget_means(mean)
        plans = {index: plan for index, plan in self._plans.items() if turn.is_of(index)}
        tasks = {index: f"{turn.sweep}-{turn.part}-{turn.parts}-{index}" for index in plans}
        are_dealt = len(plans) >= room.ranks.count
        mine = _dealt(room, plans) if are_dealt else list(plans)
        is_done = all(isinstance(run.load(tasks[index]), Found) for index in mine)
        reference = room.opened[0] if all(room.ranks.every(is_done)) else self._written(mean)
        reports = {}
        for index in mine:
            plan = plan_again(plans[index], reference.stored, room.most)
            own = mean.reports[index]
            arrays = {**identity_arrays(plan.problem.classes), **own.permutation.arrays}
            towards = reference, Within(arrays, 1 / len(room.opened)), tasks[index]
            report = found_in(room, index, plan, run, ALONE if are_dealt else room.ranks, towards)
            reports[index] = replace(report, notes=own.notes)
        every = {k: report for part in room.ranks.every(reports) for k, report in part.items()}
        if all(_same(mean.reports[index], report) for index, report in every.items()):
            return None
        return {index: every.get(index, report) for index, report in mean.reports.items()}

    def forget_means(self, but: _Mean | None = None) -> None:
        """Remove the files of means.

        Args:
            but: one that stays.
        """
        self._room.ranks.every(None)
        for number in range(1, self._means + 1) if self._room.speaks else ():
            if but is None or number != but.number:
                rmtree(self._run.folder / _Mean(number, {}).name, ignore_errors=True)

    def _written(self, mean: _Mean) -> Opened:
        room, plans = self._room, self._plans
        folder = self._run.folder / mean.name
        folder.mkdir(exist_ok=True)
        names = list(dict.fromkeys(n for plan in plans.values() for n in plan.problem.sides))
        everywhere = [n for n in names if all(n in p.problem.sides for p in plans.values())]
        permutations = [None, *(mean.reports[index].permutation for index in plans)]
        return write_mean(room.opened, permutations, everywhere, folder, room.ranks)


def _same(one: RebasinReport, other: RebasinReport) -> bool:
    arrays = other.permutation.arrays
    return all(np.array_equal(a, arrays[n]) for n, a in one.permutation.arrays.items())


def _without_values(room: Room, index: int) -> Checkpoint:
    opened = room.opened[index]
    behind: tuple[str, ...] = ()
    if opened.found.others and index == 0:
        behind = (f"Other copies of the weights in {opened.path} cannot follow and stay behind.",)
    return Checkpoint(
        opened.path,
        opened.kind,
        shapes_of(opened),
        opened.found.extra,
        opened.notes,
        opened.left_out,
        stays_behind=behind,
    )
