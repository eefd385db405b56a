"""What `fxrebasin merge` does where the models are ONNX files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fxrebasin.cli import numbers
from fxrebasin.cli.documents import card, command_document, matching_document
from fxrebasin.cli.merging import write_reports
from fxrebasin.cli.onnx_files import is_onnx_file, rebased
from fxrebasin.cli.options import AS_THEY_ARE, JOINT, ROUNDS, HowToMatch, Inputs, Talk, Target
from fxrebasin.cli.talking import say, show
from fxrebasin.cli.units import check_units_picture, draw_units_of_files
from fxrebasin.cli.work import refuse_target
from fxrebasin.errors import InputError
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.merging import merge_sources
from fxrebasin.progress import waiting
from fxrebasin.storage.files import together

if TYPE_CHECKING:
    from fxrebasin.reports.rebasin import RebasinReport


@dataclass(frozen=True)
class FilesToMerge:
    """What the options of the command say, as far as they are for ONNX files.

    Args:
        files: two or more; the first stays as it is.
        weights: how much each counts, as it was written.
        position: between two, as it was written.
        picture: where a picture of the units of two goes, if it is asked for.
        report: whether a report is written beside the result.
    """

    files: tuple[Path, ...]
    weights: tuple[str, ...]
    position: tuple[str, ...]
    picture: Path | None
    report: bool

    @property
    def beside(self) -> list[Path]:
        """What is written that is neither the result nor a report.

        Raises:
            InputError: a picture of other than two files is asked for.
        """
        if self.picture is None:
            return []
        if len(self.files) != 2:
            raise InputError(
                f"--picture is for two checkpoints, of which one was aligned; there are "
                f"{len(self.files)}"
            )
        return [self.picture]

    def shares(self) -> tuple[float, ...]:
        """How much each file counts.

        Raises:
            InputError: the numbers do not fit.
        """
        count = len(self.files)
        if self.position and (self.weights or count != 2):
            raise InputError("--t is for two files, and without --weights")
        if self.position:
            at = _one(numbers.single("--t", self.position, 0.5, {}), "--t")
            return (1 - at, at)
        given = numbers.weights(self.weights, count, {})
        return (1 / count,) * count if given is None else _one(given, "--weights")


def _one(given: Any, option: str) -> Any:
    if given.rules:
        raise InputError(f"{option} takes no patterns of names where the models are ONNX files")
    return given.everywhere


def merge_files(
    task: FilesToMerge, target: Target, matching: HowToMatch, inputs: Inputs, talk: Talk
) -> None:
    """Re-base all files towards the first, and write their mean.

    Args:
        task: the files.
        target: where the result goes.
        matching: how units are matched, if they are.
        inputs: which outputs count.
        talk: what is printed.

    Raises:
        UsageError: something is no ONNX file, or the method is not for such.
        InputError: the numbers do not fit.
    """
    for path in (*task.files, target.out):
        if not is_onnx_file(path):
            raise click.UsageError(f"an .onnx file belongs to other .onnx files; found {path}")
    if matching.method in (*JOINT, ROUNDS):
        raise click.UsageError(
            f"--method {matching.method} aligns several checkpoints at once, which is not done for "
            "ONNX files; all of them are aligned with the first"
        )
    shares = task.shares()
    suffixes = (".json", ".md") if task.report else ()
    reports_at = [target.out.with_suffix(suffix) for suffix in suffixes]
    check_units_picture(task.picture, matching)
    places = [*reports_at, *task.beside]
    refuse_target(target, *places, inputs=task.files)
    with tempfile.TemporaryDirectory(prefix="fxrebasin-") as folder:
        files, reports = _aligned(task.files, Path(folder), matching, inputs)
        facts = _facts(task.files, reports, shares)
        document = _document(task, places, target, matching, reports, shares)
        with together():
            sources = [read(path, str(name)) for path, name in zip(files, task.files, strict=True)]
            merge_sources(sources, target.out, shares, overwrite=target.overwrite)
            write_reports(reports_at, card(target.out.stem, facts, ["merge"]), document, target)
            for report in reports:
                draw_units_of_files(
                    task.picture,
                    task.files[0],
                    task.files[1],
                    report.certificate,
                    overwrite=target.overwrite,
                )
    show(talk, facts, document)
    for path in (target.out, *places):
        say(talk, f"wrote {path}")


def _document(
    task: FilesToMerge,
    places: Sequence[Path],
    target: Target,
    matching: HowToMatch,
    reports: Sequence[RebasinReport],
    shares: Sequence[float],
) -> dict[str, Any]:
    """What was done, for programs."""
    return {
        **command_document("merge"),
        "models": [str(path) for path in task.files],
        "method": matching.method or "weight",
        "seed": matching.seed,
        "alignments": [None, *map(matching_document, reports)] if reports else [],
        "combine": {"formula": "mean", "weights": list(shares)},
        "files": [str(path) for path in (target.out, *places)],
    }


def _aligned(
    files: Sequence[Path], folder: Path, matching: HowToMatch, inputs: Inputs
) -> tuple[list[Path], list[RebasinReport]]:
    """The files, all but the first in another order, and what was found of these."""
    first, *others = files
    if matching.method == AS_THEY_ARE:
        return list(files), []
    found, reports = [first], []
    for at, path in enumerate(others, start=1):
        out = folder / f"{at}.onnx"
        with waiting(f"re-basing {path}"):
            reports.append(rebased(path, first, out, matching, inputs, overwrite=False))
        found.append(out)
    return found, reports


def _facts(
    files: Sequence[Path], reports: Sequence[RebasinReport], shares: Sequence[float]
) -> list[tuple[str, str]]:
    """What was done, for people."""
    facts = [("merged", str(files[0]))]
    if not reports:
        facts += [("merged", str(path)) for path in files[1:]]
    for path, report in zip(files[1:], reports, strict=False):
        moved = f"{report.certificate.units_moved} of {report.certificate.units} units moved"
        change = f"{report.distance_before:.6g} → {report.distance_after:.6g}"
        facts.append(("merged", f"{path}: {moved}, distance {change}"))
    facts.append(("combined by", f"mean, weights {', '.join(f'{share:g}' for share in shares)}"))
    notes = dict.fromkeys(note for report in reports for note in report.notes)
    return [*facts, *(("note", note) for note in notes)]
