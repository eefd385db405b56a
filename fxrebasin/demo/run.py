"""The demo from data to files: train, rebasin, export, verify, measure, draw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

import fxrebasin
from fxrebasin.demo.barrier import STEPS, walk
from fxrebasin.demo.data import Digits, load_digits
from fxrebasin.demo.plot import draw
from fxrebasin.demo.results import Comparison, DemoResult, Outcome
from fxrebasin.demo.subjects import SUBJECTS, Subject
from fxrebasin.demo.training import train
from fxrebasin.errors import InputError
from fxrebasin.merge import BarrierCurve
from fxrebasin.storage.files import refuse_existing, replacing_set
from fxrebasin.terminal import progress_bar

PICTURE = "barrier.png"
COMPARED_IMAGES = 32


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    subjects: Sequence[Subject] = SUBJECTS,
    console: Console | None = None,
) -> DemoResult:
    """Train, rebasin, export and verify every subject, and draw the barriers.

    torch is held to one thread meanwhile: networks this small gain little from more, and the
    figures do not depend on the number of cores.

    Args:
        out: folder for the picture and the ONNX files; made if it does not exist.
        seed: 0 or more; each seed gives other networks.
        overwrite: replace files of an earlier run.
        subjects: what to train.
        console: where progress bars go if it is a terminal; standard error when left out.

    Returns:
        Figures and the paths of the files.

    Raises:
        InputError: a file is in the way, the seed is negative, or scikit-learn is missing.
        EquivalenceError: a rebased network does not compute what the original computes.
        ExportError: a network cannot be exported or run on onnxruntime.
    """
    start = time.perf_counter()
    if seed < 0:
        raise InputError(f"the demo's seed is {seed}; choose 0 or more")
    names = [*(subject.file_name for subject in subjects), PICTURE]
    refuse_existing([out / name for name in names], overwrite=overwrite)
    digits = load_digits()
    with replacing_set(out, overwrite=overwrite) as draft:
        draft.mkdir()
        with _one_thread(), progress_bar(console) as progress:
            outcomes = tuple(
                _study(subject, digits, draft / subject.file_name, seed, progress)
                for subject in subjects
            )
        (draft / PICTURE).write_bytes(draw([outcome.panel() for outcome in outcomes]))
    outcomes = tuple(_at_its_place(outcome, out / outcome.onnx_file.name) for outcome in outcomes)
    return DemoResult(outcomes, out / PICTURE, time.perf_counter() - start)


def _at_its_place(outcome: Outcome, path: Path) -> Outcome:
    """What was found, of the file where it is now."""
    return replace(
        outcome, onnx_file=path, onnxruntime=replace(outcome.onnxruntime, path=str(path))
    )


def _study(subject: Subject, digits: Digits, path: Path, seed: int, progress: Progress) -> Outcome:
    # Different seeds of the demo have no network in common.
    model_a = _train(subject, digits, "A", 2 * seed, progress)
    model_b = _train(subject, digits, "B", 2 * seed + 1, progress)
    examples = digits.test_images[:COMPARED_IMAGES]
    with _task(progress, f"{subject.title}: rebasin B"):
        symmetry = fxrebasin.analyze(model_b, examples)
        rebased = fxrebasin.transform(model_b, ref=model_a, example_inputs=examples)
    with _task(progress, f"{subject.title}: export and verify"):
        fxrebasin.export_onnx(rebased, path, examples)
        onnxruntime = fxrebasin.verify(model_b, path, examples)
        onnxruntime.raise_if_failed()
    report = rebased.meta["fxrebasin"]
    models = (model_a, model_b, rebased)
    plain = _compare(subject, digits, models, False, progress)
    recomputed = _compare(subject, digits, models, True, progress) if subject.batch_norm else None
    return Outcome(
        subject=subject,
        parameters=sum(parameter.numel() for parameter in model_b.parameters()),
        classes=len(symmetry.classes),
        log10_order=symmetry.log10_order(),
        distances=(report.distance_before, report.distance_after),
        plain=plain,
        recomputed=recomputed,
        float64=report.equivalence,
        onnxruntime=onnxruntime,
        onnx_file=path,
    )


def _train(subject: Subject, digits: Digits, name: str, seed: int, progress: Progress) -> nn.Module:
    epochs = subject.recipe.epochs
    with _task(progress, f"{subject.title}: train {name}", epochs) as advance:
        return train(subject.build, digits, subject.recipe, seed, advance)


def _compare(
    subject: Subject,
    digits: Digits,
    models: tuple[nn.Module, nn.Module, nn.Module],
    recompute: bool,
    progress: Progress,
) -> Comparison:
    a, b, rebased = models
    title = f"{subject.title}: walk from A to B" + (", recomputing statistics" if recompute else "")
    with _task(progress, title, 2 * STEPS) as advance:

        def to(end: nn.Module) -> BarrierCurve:
            return walk(a, end, digits, recompute_statistics=recompute, on_step=advance)

        return Comparison(before=to(b), after=to(rebased))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _task(progress: Progress, title: str, steps: int = 1) -> Iterator[Callable[[], None]]:
    """A line of the progress display; it is complete when the block ends, however many steps."""
    task = progress.add_task(title, total=steps)
    yield lambda: progress.advance(task)
    progress.update(task, completed=steps)
