"""What `fxrebasin merge` and `interpolate` do with checkpoints that do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxrebasin.cli.aligning import Aligned
from fxrebasin.cli.documents import card, digest_facts
from fxrebasin.cli.ingredients import Ingredients
from fxrebasin.cli.large import (
    METHOD,
    Result,
    Room,
    found_in,
    outcome_of,
    planned,
    schedule_settings,
    settings_of,
    show_large_plan,
    writing,
)
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
from fxrebasin.cli.options import AS_THEY_ARE, HowToMatch, HowToRead, Inputs, Limits, Talk, Target
from fxrebasin.cli.talking import say, show
from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.combinations import Combination
from fxrebasin.merge.states import tied_names
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.files import together
from fxrebasin.storage.reading import Checkpoint
from fxrebasin.streaming.aligning import Plan, shapes_of
from fxrebasin.streaming.combining import Combining
from fxrebasin.streaming.dealing import spread
from fxrebasin.streaming.outcome import Outcome, publish_outcome, write_outcome
from fxrebasin.streaming.ranks import ALONE
from fxrebasin.streaming.unfinished import Unfinished, unfinished_run

PROOF = "every tensor that was written was read again and is, bit for bit, what was computed"

How = tuple[HowToMatch, HowToRead, Inputs]


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
    outcome = outcome_of(room, Result(target, 0, False))
    plans = _plans(room, how)
    if talk.dry_run:
        if room.speaks:
            show_large_plan("merge", room, list(plans.values()), outcome, talk)
        return
    settings = _settings("merge", room, how, plans, [repr(task), target.dtype])
    before = room.fingerprints()
    with unfinished_run(target.out, settings, resume=limits.resume, ranks=room.ranks) as run:
        made_of = _ingredients(room, plans, run, task.base is not None)
        combination = task.combination(len(made_of.checkpoints), matching.seed, made_of.aligned)
        check_patterns(combination, made_of)
        facts = [
            *merge_facts(room.bench.name, made_of, combination, task, None),
            ("checked", PROOF),
        ]
        text = card(target.out.stem, [*facts, *merge_digests(made_of)], ["merge"])
        _write(room, made_of, combination, outcome, run.result(0), text)
        room.unchanged(before)
        read = room.bytes_read()
        if not room.speaks:
            return
        reports = report_places(task, target)
        document = merge_document(room.bench.name, made_of, combination, (task, matching), None)
        document["bytes_read_by_process"] = read
        with together():
            written = publish_outcome(outcome, run.result(0), overwrite=target.overwrite)
            document |= {"proof": PROOF, "files": [str(path) for path in (written, *reports)]}
            write_reports(reports, text, document, target)
    show(talk, facts, document)
    for path in (written, *reports):
        if path.parent != target.out:  # what is in the folder belongs to it
            say(talk, f"wrote {path}")


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
    outcomes = {t: outcome_of(room, Result(target, 0, False)) for t, target in targets.items()}
    plans = _plans(room, how)
    first = next(iter(targets.values()))
    if talk.dry_run:
        for outcome in outcomes.values() if room.speaks else ():
            show_large_plan("interpolate", room, list(plans.values()), outcome, talk)
        return
    settings = _settings("interpolate", room, how, plans, [list(targets), first.dtype])
    before = room.fingerprints()
    files = []
    with unfinished_run(first.out, settings, resume=limits.resume, ranks=room.ranks) as run:
        made_of = _ingredients(room, plans, run, based=False)
        facts = [*line_facts(made_of), ("checked", PROOF)]
        digest = digest_facts(room.opened[1].path, made_of.aligned.permutations[1])
        for k, (t, outcome) in enumerate(outcomes.items()):
            text = card(outcome.out.stem, [("position", f"{t:g}"), *facts, *digest], ["merge"])
            combination = Combination(weights=ByPattern((1 - t, t)))
            _write(room, made_of, combination, outcome, run.result(k), text)
        room.unchanged(before)
        read = room.bytes_read()
        if not room.speaks:
            return
        with together():
            for k, outcome in enumerate(outcomes.values()):
                files.append(publish_outcome(outcome, run.result(k), overwrite=first.overwrite))
    document = line_document("interpolate", made_of) | {
        "positions": list(targets),
        "recalibrate": None,
        "proof": PROOF,
        "bytes_read_by_process": read,
        "files": [str(file) for file in files],
    }
    show(talk, facts, document)
    for t, outcome in outcomes.items():
        say(talk, f"wrote {outcome.out} (t = {t:g})")


def _plans(room: Room, how: How) -> dict[int, Plan]:
    """How each checkpoint is matched with the first; none where units stay as they are."""
    if how[0].method == AS_THEY_ARE:
        return {}
    return {index: planned(room, index, how[2]) for index in range(1, len(room.opened))}


def _settings(
    command: str, room: Room, how: How, plans: Mapping[int, Plan], more: Sequence[Any]
) -> dict[str, Any]:
    schedules = [schedule_settings(plan) for plan in plans.values()]
    return settings_of(command, room, how, {"more": list(more), "schedules": schedules})


def _ingredients(
    room: Room, plans: Mapping[int, Plan], run: Unfinished, based: bool
) -> Ingredients:
    """The checkpoints without values, and the order of their units."""
    run.mark()
    found = _found(room, plans, run)
    reports = tuple(found.get(index) for index in range(len(room.opened)))
    permutations = tuple(None if r is None else r.permutation for r in reports)
    aligned = Aligned(METHOD if plans else AS_THEY_ARE, permutations, reports)
    every = tuple(_without_values(room, index) for index in range(len(room.opened)))
    checkpoints = every[:-1] if based else every
    return Ingredients(room.bench, checkpoints, every[-1] if based else None, aligned)


def _found(room: Room, plans: Mapping[int, Plan], run: Unfinished) -> dict[int, RebasinReport]:
    """Match each checkpoint with the first: many are dealt to processes, few are shared by them."""
    ranks = room.ranks
    if len(plans) < ranks.count:
        return {index: found_in(room, index, plan, run, ranks) for index, plan in plans.items()}
    owners = spread([plan.schedule.bytes_first for plan in plans.values()], ranks.count)
    mine = {
        index: found_in(room, index, plan, run, ALONE)
        for (index, plan), owner in zip(plans.items(), owners, strict=True)
        if owner == ranks.number
    }
    every = {index: report for part in ranks.every(mine) for index, report in part.items()}
    return {index: every[index] for index in plans}


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


def _write(
    room: Room,
    made_of: Ingredients,
    combination: Combination,
    outcome: Outcome,
    folder: Path,
    text: str,
) -> None:
    module = room.bench.module
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    found = [None if r is None else r.permutation for r in made_of.aligned.reports]
    recipe = Combining(
        room.opened,
        found,
        combination,
        {name for name in made_of.checkpoints[0].state if name not in parameters},
        set(made_of.kept),
        {name: first for first, *others in tied_names(module) for name in others},
    )
    with writing(outcome) as wrote:
        write_outcome(outcome, recipe, folder, module, room.bench.reading, text, wrote, room.ranks)
