"""What `fxrebasin transform` does with checkpoints that do not fit into memory."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from fxrebasin.cli.documents import card, command_document, digest_facts, matching_document
from fxrebasin.cli.large import (
    PROOF,
    Result,
    Room,
    document_of,
    found_in,
    outcome_of,
    planned,
    schedule_settings,
    settings_of,
    show_large_plan,
    writing,
)
from fxrebasin.cli.options import HowToMatch, HowToRead, Inputs, Limits, Talk, Target
from fxrebasin.cli.talking import say, show
from fxrebasin.show.views import report_facts
from fxrebasin.storage.files import together
from fxrebasin.streaming.making import Permuting
from fxrebasin.streaming.outcome import publish_outcome, write_outcome
from fxrebasin.streaming.unfinished import unfinished_run


def transform_large(
    room: Room,
    how: tuple[HowToMatch, HowToRead, Inputs],
    certificate: Path | None,
    target: Target,
    limits: Limits,
    talk: Talk,
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
    outcome = outcome_of(room, Result(target, 1, True))
    plan = planned(room, 1, how[2])
    if talk.dry_run:
        if room.speaks:
            show_large_plan("transform", room, [plan], outcome, talk)
        return
    reference, moving = room.opened
    before = room.fingerprints()
    more = {"out": target.dtype, "schedule": schedule_settings(plan)}
    settings = settings_of("transform", room, how, more)
    with unfinished_run(target.out, settings, resume=limits.resume, ranks=room.ranks) as run:
        report = found_in(room, 1, plan, run, room.ranks)
        permutation = report.permutation
        notes = (*reference.notes, *moving.notes)
        facts = report_facts(report, notes, proof=PROOF)
        what = [("permuted", str(moving.path)), ("towards", str(reference.path))]
        digest = digest_facts(moving.path, permutation)
        text = card(target.out.stem, [*what, ("seed", str(how[0].seed)), *facts, *digest])
        began = time.perf_counter()
        with writing(outcome) as wrote:
            recipe = Permuting(moving, permutation)
            bench = room.bench
            write_outcome(
                outcome, recipe, run.result(), bench.module, bench.reading, text, wrote, room.ranks
            )
        report = replace(report, seconds={**report.seconds, "write": time.perf_counter() - began})
        room.unchanged(before)
        read = room.bytes_read()
        if not room.speaks:
            return
        with together():
            files = [publish_outcome(outcome, run.result(), overwrite=target.overwrite)]
            if certificate is not None:
                permutation.save(certificate, overwrite=target.overwrite)
                files.append(certificate)
    document = {
        **command_document("transform"),
        "model": room.bench.name,
        "model_b": document_of(moving),
        "ref": document_of(reference),
        **matching_document(report),
        "proof": PROOF,
        "memory_bytes": plan.schedule.peak,
        "bytes_read_by_process": read,
        "onnx": None,
        "files": [str(file) for file in files],
    }
    show(talk, report_facts(report, notes, proof=PROOF), document)
    for file in files:
        say(talk, f"wrote {file}")
