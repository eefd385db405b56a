"""What `fxrebasin transform` does with checkpoints that do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fxrebasin.cli.documents import card, command_document, digest_facts, matching_document
from fxrebasin.cli.large import (
    PROOF,
    Result,
    Room,
    document_of,
    found_in,
    outcome_of,
    planned,
    with_digests,
)
from fxrebasin.cli.large_run import How, Made, Task, carry_out
from fxrebasin.cli.options import Limits, Talk, Target
from fxrebasin.show.views import report_facts
from fxrebasin.streaming.aligning import Plan
from fxrebasin.streaming.making import Permuting
from fxrebasin.streaming.unfinished import Unfinished


def transform_large(
    room: Room, how: How, certificate: Path | None, target: Target, limits: Limits, talk: Talk
) -> None:
    """Permute a checkpoint towards another, a tensor at a time.

    Args:
        room: has the reference and the checkpoint.
        how: units are matched, checkpoints read, and the model run.
        certificate: where the permutation is written.
        target: where the result goes, and in which dtype.
        limits: whether an earlier run is gone on with.
        talk: what is printed.
    """
    plan = planned(room, 1, how[2])
    task = Task(
        "transform",
        [outcome_of(room, Result(target, 1, True))],
        {1: plan},
        [target.dtype],
        target.overwrite,
        lambda run: _made(room, plan, run, (how[0].seed, target, certificate)),
        [] if certificate is None else [certificate],
        lambda files: [str(file) for file in files],
    )
    carry_out(task, room, how, limits, talk)


def _made(room: Room, plan: Plan, run: Unfinished, asked: tuple[int, Target, Path | None]) -> Made:
    seed, target, certificate = asked
    reference, moving = room.opened
    report = found_in(room, 1, plan, run, room.ranks)
    if certificate is not None:
        report = replace(report, certificate=with_digests(room, report.permutation))
    permutation = report.permutation
    notes = (*reference.notes, *moving.notes, *moving.left_out)
    what = [("permuted", str(moving.path)), ("towards", str(reference.path))]
    facts = report_facts(report, notes, proof=PROOF)
    digest = digest_facts(moving.path, permutation)
    text = card(target.out.stem, [*what, ("seed", str(seed)), *facts, *digest])

    def timed(seconds: float) -> Any:
        return replace(report, seconds={**report.seconds, "write": seconds})

    def document(seconds: float) -> dict[str, Any]:
        return {
            **command_document("transform"),
            "model": room.bench.name,
            "model_b": document_of(moving),
            "ref": document_of(reference),
            **matching_document(timed(seconds)),
            "memory_bytes": plan.schedule.peak,
            "onnx": None,
        }

    def write_beside(document: Mapping[str, Any]) -> None:
        if certificate is not None:
            permutation.save(certificate, overwrite=target.overwrite)

    return Made(
        PROOF,
        [(Permuting(moving, permutation), text)],
        lambda seconds: report_facts(timed(seconds), notes, proof=PROOF),
        document,
        write_beside,
    )
