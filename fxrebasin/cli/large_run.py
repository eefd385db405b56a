"""What all commands do that read and write a tensor at a time: match, write, look, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxrebasin.cli.large import (
    Room,
    schedule_settings,
    settings_of,
    show_large_plan,
    writing,
)
from fxrebasin.cli.options import HowToMatch, HowToRead, Inputs, Limits, Talk
from fxrebasin.cli.talking import say, show
from fxrebasin.storage.files import together
from fxrebasin.streaming.aligning import Plan
from fxrebasin.streaming.making import Recipe
from fxrebasin.streaming.outcome import Outcome, publish_outcome, write_outcome
from fxrebasin.streaming.unfinished import Unfinished, unfinished_run

How = tuple[HowToMatch, HowToRead, Inputs]
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Made:
    """What is written, once units are matched.

    Args:
        proof: what is known of it, in words.
        contents: the tensors of each outcome, and the text of its card.
        facts: what was done, for people, from the seconds that writing took.
        document: the same for programs.
        write_beside: writes what belongs beside the outcomes, from the whole document.
    """

    proof: str
    contents: Sequence[tuple[Recipe, str]]
    facts: Callable[[float], Facts]
    document: Callable[[float], dict[str, Any]]
    write_beside: Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """What a command is asked for.

    Args:
        command: its name.
        outcomes: what is written.
        plans: of the matches, by the checkpoint that moves.
        settings: all that decides about the outcomes, beside checkpoints and how they are read.
        overwrite: replace what exists.
        make: matches units; goes on with what an earlier run found.
        beside: places of what is written with the outcomes.
        lines: what is said about places that were written.
    """

    command: str
    outcomes: Sequence[Outcome]
    plans: Mapping[int, Plan]
    settings: Sequence[Any]
    overwrite: bool
    make: Callable[[Unfinished], Made]
    beside: Sequence[Path]
    lines: Callable[[Sequence[Path]], Sequence[str]]


def carry_out(task: Task, room: Room, how: How, limits: Limits, talk: Talk) -> None:
    """Do what a command is asked for.

    Args:
        task: that.
        room: has the checkpoints.
        how: units are matched, checkpoints read, and the model run.
        limits: whether an earlier run is gone on with.
        talk: what is printed.
    """
    if talk.dry_run:
        for outcome in task.outcomes if room.speaks else ():
            show_large_plan(task.command, room, list(task.plans.values()), outcome, talk)
        return
    schedules = [schedule_settings(plan) for plan in task.plans.values()]
    more = {"more": list(task.settings), "schedules": schedules}
    settings = settings_of(task.command, room, how, more)
    before = room.fingerprints()
    out, ranks = task.outcomes[0].out, room.ranks
    with unfinished_run(out, settings, resume=limits.resume, ranks=ranks) as run:
        made = task.make(run)
        began = time.perf_counter()
        damaged = [
            run.result(k) / name
            for k, (outcome, content) in enumerate(zip(task.outcomes, made.contents, strict=True))
            for name in _write(room, outcome, content, run.result(k))
        ]
        seconds = time.perf_counter() - began
        room.unchanged(before)
        read = room.bytes_read()
        if not room.speaks:
            return
        document = {
            **made.document(seconds),
            "proof": made.proof,
            "bytes_read_by_process": read,
            "made_anew": [path.name for path in damaged],
        }
        with together():
            files = [
                publish_outcome(outcome, run.result(k), overwrite=task.overwrite)
                for k, outcome in enumerate(task.outcomes)
            ]
            files += task.beside
            document["files"] = [str(file) for file in files]
            made.write_beside(document)
    show(talk, made.facts(seconds), document)
    for path in damaged:
        say(talk, f"{path} was not what the earlier run had written any more: it was made anew")
    for line in task.lines(files):
        say(talk, f"wrote {line}")


def _write(room: Room, outcome: Outcome, content: tuple[Recipe, str], folder: Path) -> list[str]:
    recipe, text = content
    bench = room.bench
    with writing(outcome) as wrote:
        return write_outcome(
            outcome, recipe, folder, bench.module, bench.reading, text, wrote, room.ranks
        )
