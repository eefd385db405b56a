"""Commands on checkpoints that do not fit into memory: which those are, and what they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
from torch import nn

from fxrebasin.cli.documents import command_document
from fxrebasin.cli.options import (
    AS_THEY_ARE,
    ROUNDS,
    HowToMatch,
    HowToRead,
    Inputs,
    Limits,
    Talk,
    Target,
)
from fxrebasin.cli.talking import show
from fxrebasin.cli.work import Bench, open_bench
from fxrebasin.errors import InputError
from fxrebasin.facts import bytes_text, counted
from fxrebasin.ignoring import fits
from fxrebasin.merge.own_tensors import by_shapes
from fxrebasin.merge.states import own_state
from fxrebasin.models.valueless import ValuelessError
from fxrebasin.permutation import Permutation
from fxrebasin.progress import LateBar, waiting
from fxrebasin.ranks import ALONE, Ranks
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.digests import joint_digest
from fxrebasin.streaming.aligning import Plan, match_files, plan_match, shapes_of
from fxrebasin.streaming.archive import WholeOnlyError
from fxrebasin.streaming.dealing import spread
from fxrebasin.streaming.digests import tensor_digests
from fxrebasin.streaming.fetching import Within
from fxrebasin.streaming.joining import joined
from fxrebasin.streaming.memory import available_memory
from fxrebasin.streaming.opening import Opened, open_checkpoint
from fxrebasin.streaming.outcome import Outcome, plan_outcome
from fxrebasin.streaming.started import are_several
from fxrebasin.streaming.unfinished import Unfinished

_Work: TypeAlias = tuple[Opened, nn.Module | None]
"""A checkpoint, and the model in whose dtypes it is read."""

METHOD = "weight"
PROOF = "every tensor that was written was read again and is, bit for bit, what it should be"

# In memory, a command takes up to ten times one of its checkpoints.
_SHARE = 8
_MIB = 2**20


@dataclass(frozen=True)
class Room:
    """Checkpoints that were opened, and what there is for them.

    Args:
        bench: has the model, with parameters on the meta device.
        opened: the checkpoints, the one that others are matched with first.
        most: bytes of memory; None for the least that is needed.
        ranks: the processes that share the work.
    """

    bench: Bench
    opened: tuple[Opened, ...]
    most: int | None
    ranks: Ranks = ALONE

    @property
    def speaks(self) -> bool:
        """Whether this process says what was done, publishes the result, and shows progress."""
        return self.ranks.number == 0

    def bytes_read(self) -> list[int]:
        """By each of the processes."""
        return self.ranks.every(sum(opened.reader.bytes_read for opened in self.opened))

    def unchanged(self, before: Sequence[str]) -> None:
        """Refuse a result of files that changed meanwhile.

        Args:
            before: from `fingerprints`.

        Raises:
            InputError: naming the first that changed.
        """
        for opened, old, new in zip(self.opened, before, self.fingerprints(), strict=True):
            if old != new:
                raise InputError(f"{opened.path} was changed while it was read; run again")

    def fingerprints(self) -> tuple[str, ...]:
        """What tells the files from others."""
        return tuple(opened.reader.fingerprint() for opened in self.opened)


def with_digests(room: Room, permutation: Permutation) -> Permutation:
    """The permutation of the second checkpoint towards the first, which knows both.

    Each of them is read once more; several processes read different tensors. What a checkpoint
    lacks, because it is ignored, is what the model happens to hold: then nothing is known of it.

    Args:
        room: has both.
        permutation: that was found.
    """
    reference, moving = room.opened
    module, ranks = room.bench.module, room.ranks
    if any(opened.stored.keys() != module.state_dict().keys() for opened in room.opened):
        return permutation
    with waiting("fingerprints"):
        states = _digests({"model": (moving, module), "reference": (reference, None)}, ranks)
    made_from = replace(permutation.found_with, states=states)
    return permutation.relying_on(permutation.relies_on, made_from)


def _digests(works: Mapping[str, _Work], ranks: Ranks) -> dict[str, str]:
    """The digests of checkpoints, of which each process reads a share."""
    tensors = [
        (what, name) for what, (opened, _) in works.items() for name in sorted(opened.stored)
    ]
    owners = spread([works[w][0].stored[name].bytes for w, name in tensors], ranks.count)
    mine = [item for item, owner in zip(tensors, owners, strict=True) if owner == ranks.number]
    own = {
        what: tensor_digests(opened, [name for w, name in mine if w == what], like)
        for what, (opened, like) in works.items()
    }
    every = ranks.every(own)
    states = {}
    for what in works:
        found = {name: digest for one in every for name, digest in one[what].items()}
        states[what] = joint_digest(found[name] for name in sorted(found))
    return states


@dataclass(frozen=True)
class Result:
    """A result that is to be written.

    Args:
        target: where, and in which dtype.
        like: index of the checkpoint whose form it has.
        others: whether other copies of the weights in the file are brought along.
    """

    target: Target
    like: int
    others: bool


def room_for(
    model: str,
    paths: Sequence[Path],
    how: tuple[HowToMatch, HowToRead, Inputs],
    limits: Limits,
    others: Mapping[str, object],
    results: Sequence[Result],
) -> Room | None:
    """Open checkpoints to be read a tensor at a time; None where they are to be read as a whole.

    Args:
        model: its name.
        paths: of the checkpoints, the one that others are matched with first.
        how: units are matched, checkpoints read, and the model run.
        limits: what was asked for.
        others: values of options, by name, that need whole models where they are given.
        results: what is to be written.

    Raises:
        InputError: something was asked for that cannot be done a tensor at a time.
    """
    matching, reading, inputs = how
    several = are_several()
    asked = limits.max_memory is not None or limits.resume or several
    asked = asked or matching.method == ROUNDS
    if not asked and not are_large(paths):
        return None
    needing = [name for name, value in {**others, **_needing(matching)}.items() if value]
    if needing and asked:
        why = "--max-memory and --resume" if matching.method != ROUNDS else f"--method {ROUNDS}"
        raise InputError(
            f"{', '.join(needing)} cannot be had a tensor at a time; leave out "
            f"{'torchrun' if several else why}, or these"
        )
    if needing:
        return None
    try:
        bench = open_bench(model, inputs, reading, values=False)
        opened = tuple(open_checkpoint(path, bench.module, bench.reading) for path in paths)
        ranks = click.get_current_context().with_resource(joined()) if several else ALONE
        room = Room(bench, opened, limits.max_memory, ranks)
        for result in results:
            outcome_of(room, result)
    except (WholeOnlyError, ValuelessError):
        if asked:
            raise
        return None
    return room


def are_large(paths: Sequence[Path]) -> bool:
    """Whether checkpoints are too large to be read as a whole, as commands do.

    Args:
        paths: of files and folders.
    """
    free = available_memory()
    return free is not None and _SHARE * max(map(_size, paths)) > free


def _size(path: Path) -> int:
    """Bytes of the files that a checkpoint consists of, and of those beside them in a folder."""
    folder = path if path.is_dir() else path.parent if path.suffix == ".json" else None
    files = [path] if folder is None else [p for p in folder.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def _needing(matching: HowToMatch) -> dict[str, object]:
    """Options of matching for which models have to be run, or kept."""
    method = matching.method
    return {
        f"--method {method}": method not in (None, METHOD, ROUNDS, AS_THEY_ARE),
        "--restarts": matching.restarts,
        "--data": matching.data,
        "--loss": matching.loss,
        f"--symmetry {matching.symmetry}": matching.symmetry != "permutation",
    }


def planned(room: Room, index: int, inputs: Inputs) -> Plan:
    """How a checkpoint is matched with the first.

    Args:
        room: has both.
        index: of the checkpoint.
        inputs: which outputs and buffers count.
    """
    bench = room.bench
    with waiting("analyze"):
        return plan_match(
            bench.module,
            (bench.example.args, bench.example.kwargs),
            inputs.choices,
            (room.opened[0], room.opened[index]),
            bench.reading,
            room.most,
        )


def found_in(
    room: Room,
    index: int,
    plan: Plan,
    run: Unfinished,
    ranks: Ranks,
    towards: tuple[Opened, Within, str] | None = None,
) -> RebasinReport:
    """Match a checkpoint with the first, or with something else.

    Args:
        room: has both.
        index: of the checkpoint.
        plan: of the match.
        run: keeps how far it is.
        ranks: the processes that share the work.
        towards: the mean that it is matched with, what it has in that, and the name of the match;
            the first checkpoint when left out.
    """
    reference, within, task = towards or (room.opened[0], None, str(index))
    pair = (reference, room.opened[index])
    total = plan.schedule.bytes_first // ranks.count
    with closing(LateBar()) as report, _counting(pair, report, "matching (MiB read)", total):
        found = match_files(plan, pair, {}, run, task, ranks=ranks, within=within)
    return replace(found, certificate=_for_file(room, index, found))


def _for_file(room: Room, index: int, report: RebasinReport) -> Permutation:
    """The permutation for the tensors of a file, which may differ from the model's if ignored."""
    opened, ignore = room.opened[index], room.bench.reading.ignore
    if not ignore:
        return report.permutation
    return by_shapes(
        report.permutation,
        shapes_of(opened),
        own_state(room.bench.module),
        report.ignored,
        str(opened.path),
        [name for name in opened.found.extra if fits(name, ignore)],
    )


@contextmanager
def _counting(opened: Sequence[Opened], report: LateBar, stage: str, total: int) -> Iterator[None]:
    """Show how much was read."""
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        report(stage, done // _MIB, max(done, total) // _MIB)

    for item in opened:
        item.reader.on_read = read
    try:
        yield
    finally:
        for item in opened:
            item.reader.on_read = lambda count: None


@contextmanager
def writing(outcome: Outcome) -> Iterator[Any]:
    """Show how much was written, and read again.

    Args:
        outcome: what is written.
    """
    done = 0
    with closing(LateBar()) as report:

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            report("writing and reading again (MiB)", done // _MIB, 2 * outcome.bytes // _MIB)

        yield wrote


def outcome_of(room: Room, result: Result) -> Outcome:
    """What is written.

    Args:
        room: has the checkpoints.
        result: where, and in which form.
    """
    target = result.target
    dtype = None if target.dtype is None else getattr(torch, target.dtype)
    like = room.opened[result.like]
    return plan_outcome(target.out, like, dtype, others=result.others, overwrite=target.overwrite)


def settings_of(
    command: str, room: Room, how: tuple[HowToMatch, HowToRead, Inputs], more: Mapping[str, Any]
) -> dict[str, Any]:
    """All that decides about a result, for a run that is gone on with.

    Args:
        command: its name.
        room: has the checkpoints.
        how: units are matched, checkpoints read, and the model run.
        more: of the command.
    """
    return {
        **command_document(command),
        "model": room.bench.name,
        "inputs": list(room.fingerprints()),
        "how": [repr(part) for part in how],
        **more,
    }


def schedule_settings(plan: Plan | None) -> list[Any]:
    """What decides about the steps of a match.

    Args:
        plan: of the match; None for none.
    """
    if plan is None:
        return []
    schedule = plan.schedule
    return [list(schedule.streams), [visit.root for visit in schedule.visits]]


def document_of(opened: Opened) -> dict[str, Any]:
    """What was opened, and how, for programs.

    Args:
        opened: a checkpoint.
    """
    return {
        "path": str(opened.path),
        "kind": opened.kind.value,
        "notes": list(opened.notes),
        "left_out": list(opened.left_out),
        "extra": list(opened.found.extra),
        "bytes_read": opened.reader.bytes_read,
    }


def show_large_plan(
    command: str, room: Room, plans: Sequence[Plan], outcome: Outcome, talk: Talk
) -> None:
    """Print what would be done, and what it takes; no tensor but buffers was read.

    Args:
        command: its name.
        room: has the checkpoints.
        plans: of the matches.
        outcome: what would be written.
        talk: what is printed.
    """
    reads = sum(opened.bytes for opened in room.opened)
    schedules = [plan.schedule for plan in plans]
    document = {
        **command_document(command),
        "dry_run": True,
        "model": room.bench.name,
        "inputs": list(room.bench.shapes()),
        "checkpoints": [document_of(opened) for opened in room.opened],
        "memory_bytes": max((schedule.peak for schedule in schedules), default=None),
        "matches": [
            {
                "streams": list(s.streams),
                "visits": len(s.visits),
                "bytes_first_sweep": s.bytes_first,
                "bytes_later_sweep": s.bytes_again,
                "memory_bytes": s.peak,
            }
            for s in schedules
        ],
        "bytes_read_to_write": reads if len(plans) != 1 else room.opened[-1].bytes,
        "bytes_written": outcome.bytes,
        "bytes_read_again": outcome.bytes,
        "out": str(outcome.out),
        "notes": [note for plan in plans for note in plan.symmetry.notes],
    }
    rows = [("model", room.bench.name), ("inputs", ", ".join(room.bench.shapes()))]
    for k, opened in enumerate(room.opened):
        rows.append(("moves" if k else "reference", f"{opened.path}: {bytes_text(opened.bytes)}"))
    for plan in plans:
        rows += _rows(plan)
    rows += [
        ("writes", f"{outcome.out}: {bytes_text(outcome.bytes)}, all of it read again"),
        *(("note", note) for plan in plans for note in plan.symmetry.notes),
        ("", "dry run: no parameter was read, and nothing was written"),
    ]
    show(talk, rows, document)


def _rows(plan: Plan) -> list[tuple[str, str]]:
    schedule = plan.schedule
    streams = counted(len(schedule.streams), "class", "classes")
    return [
        (
            "classes",
            f"{len(plan.symmetry.classes)}: {counted(len(schedule.visits), 'visit')} in the order "
            f"of the layers, {streams} solved at the end of a sweep",
        ),
        ("memory", f"about {bytes_text(schedule.peak)} at most"),
        (
            "reads",
            f"{bytes_text(schedule.bytes_first)} in the first sweep, "
            f"{bytes_text(schedule.bytes_again)} in each that follows",
        ),
    ]
