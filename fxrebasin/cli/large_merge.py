"""What `fxrebasin merge` and `interpolate` do with checkpoints that do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxrebasin.cli.documents import card, digest_facts
from fxrebasin.cli.ingredients import Ingredients
from fxrebasin.cli.large import Result, Room, outcome_of
from fxrebasin.cli.large_alignment import ingredients, plans_for
from fxrebasin.cli.large_run import How, Made, Task, carry_out
from fxrebasin.cli.line import line_document, line_facts
from fxrebasin.cli.merging import (
    Merge,
    check_patterns,
    merge_digests,
    merge_document,
    merge_facts,
    report_places,
    write_reports,
)
from fxrebasin.cli.options import Limits, Talk, Target
from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.combinations import Combination
from fxrebasin.merge.states import tied_names
from fxrebasin.streaming.combining import Combining
from fxrebasin.streaming.unfinished import Unfinished

PROOF = "every tensor that was written was read again and is, bit for bit, what was computed"


def merge_large(
    task: Merge, room: Room, target: Target, how: How, limits: Limits, talk: Talk
) -> None:
    """Merge checkpoints, a tensor at a time.

    Args:
        task: what is merged, and by which formula.
        room: has the checkpoints, and the base behind them.
        target: where the result goes, and in which dtype.
        how: units are matched, checkpoints read, and the model run.
        limits: whether an earlier run is gone on with.
        talk: what is printed.
    """
    matching = how[0]
    plans = plans_for(room, how)

    def made(run: Unfinished) -> Made:
        made_of = ingredients(room, matching.method, plans, run, based=task.base is not None)
        combination = task.combination(len(made_of.checkpoints), matching.seed, made_of.aligned)
        check_patterns(combination, made_of)
        name = room.bench.name
        done = [*merge_facts(name, made_of, combination, task, None), ("checked", PROOF)]
        text = card(target.out.stem, [*done, *merge_digests(made_of)], ["merge"])
        return Made(
            PROOF,
            [(_recipe(room, made_of, combination), text)],
            lambda seconds: done,
            lambda seconds: merge_document(name, made_of, combination, (task, matching), None),
            lambda document: write_reports(reports, text, document, target),
        )

    def lines(files: Sequence[Path]) -> list[str]:
        # What is in the folder belongs to it.
        return [str(file) for file in files if file.parent != target.out]

    reports = report_places(task, target)
    outcome = outcome_of(room, Result(target, 0, False))
    settings = [repr(task), target.dtype]
    asked = Task("merge", [outcome], plans, settings, target.overwrite, made, reports, lines)
    carry_out(asked, room, how, limits, talk)


def interpolate_large(
    room: Room, targets: Mapping[float, Target], how: How, limits: Limits, talk: Talk
) -> None:
    """Write models on the line between two checkpoints, a tensor at a time.

    Args:
        room: has the checkpoints.
        targets: where the model at each position goes.
        how: units are matched, checkpoints read, and the model run.
        limits: whether an earlier run is gone on with.
        talk: what is printed.
    """
    plans = plans_for(room, how)
    outcomes = [outcome_of(room, Result(target, 0, False)) for target in targets.values()]

    def made(run: Unfinished) -> Made:
        made_of = ingredients(room, how[0].method, plans, run, based=False)
        done = [*line_facts(made_of), ("checked", PROOF)]
        digest = digest_facts(room.opened[1].path, made_of.aligned.permutations[1])
        contents = []
        for t, target in targets.items():
            text = card(target.out.stem, [("position", f"{t:g}"), *done, *digest], ["merge"])
            combination = Combination(weights=ByPattern((1 - t, t)))
            contents.append((_recipe(room, made_of, combination), text))
        return Made(
            PROOF,
            contents,
            lambda seconds: done,
            lambda seconds: document(made_of),
            lambda document: None,
        )

    def document(made_of: Ingredients) -> dict[str, Any]:
        found = line_document("interpolate", made_of)
        return {**found, "positions": list(targets), "recalibrate": None}

    def lines(files: Sequence[Path]) -> list[str]:
        return [f"{target.out} (t = {t:g})" for t, target in targets.items()]

    first = next(iter(targets.values()))
    settings = [list(targets), first.dtype]
    task = Task("interpolate", outcomes, plans, settings, first.overwrite, made, (), lines)
    carry_out(task, room, how, limits, talk)


def _recipe(room: Room, made_of: Ingredients, combination: Combination) -> Combining:
    module = room.bench.module
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return Combining(
        room.opened,
        [None if r is None else r.permutation for r in made_of.aligned.reports],
        combination,
        {name for name in made_of.checkpoints[0].state if name not in parameters},
        set(made_of.kept),
        {name: first for first, *others in tied_names(module) for name in others},
    )
