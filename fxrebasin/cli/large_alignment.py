"""How checkpoints that do not fit into memory are brought into the order of the first one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np

from fxrebasin.cli.aligning import Aligned
from fxrebasin.cli.ingredients import Ingredients
from fxrebasin.cli.large import METHOD, Room, found_in, planned
from fxrebasin.cli.large_run import How
from fxrebasin.cli.options import AS_THEY_ARE, ROUNDS
from fxrebasin.facts import counted
from fxrebasin.ranks import ALONE
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.reading import Checkpoint
from fxrebasin.streaming.aligning import Plan, plan_again, shapes_of
from fxrebasin.streaming.averaging import write_mean
from fxrebasin.streaming.dealing import spread
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
    """Match all checkpoints but the first with the mean of all, again and again.

    The agreement of all pairs never falls: what it would be with any other order is at least what
    the products with the present mean promise, since it is the squared length of a sum.
    """
    for number in range(1, _MOST_ROUNDS + 1):
        before, found = found, _round(room, plans, found, run, number)
        if all(_same(before[index], found[index]) for index in plans):
            return found
    note = f"Matching was stopped after {counted(_MOST_ROUNDS, 'round')}, before it had settled."
    return {k: replace(report, notes=(*report.notes, note)) for k, report in found.items()}


def _round(
    room: Room, plans: Mapping[int, Plan], found: Reports, run: Unfinished, number: int
) -> Reports:
    ranks = room.ranks
    tasks = {index: f"{number}-{index}" for index in plans}
    mine = _dealt(room, plans) if len(plans) >= ranks.count else list(plans)
    is_done = all(isinstance(run.load(tasks[index]), Found) for index in mine)
    folder = run.folder / f"mean-{number}"
    reference = room.opened[0]
    if not all(ranks.every(is_done)):
        reference = _mean(room, plans, found, folder)
    shares = ALONE if len(plans) >= ranks.count else ranks
    reports = {}
    for index in mine:
        plan = plan_again(plans[index], reference.stored, room.most)
        arranged = found[index].permutation.arrays
        task = tasks[index]
        report = found_in(room, index, plan, run, shares, (reference, arranged, task))
        reports[index] = replace(report, notes=found[index].notes)
    every = {index: report for part in ranks.every(reports) for index, report in part.items()}
    if room.speaks:
        rmtree(folder, ignore_errors=True)
    return {index: every[index] for index in plans}


def _mean(room: Room, plans: Mapping[int, Plan], found: Reports, folder: Path) -> Opened:
    folder.mkdir(exist_ok=True)
    names = list(dict.fromkeys(n for plan in plans.values() for n in plan.problem.sides))
    everywhere = [n for n in names if all(n in p.problem.sides for p in plans.values())]
    permutations = [None, *(found[index].permutation for index in plans)]
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
        stays_behind=behind,
    )
