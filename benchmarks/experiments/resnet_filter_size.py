"""Do larger filters lower the barrier between residual networks? What does merging many give?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.experiments.data.find import load_images
from benchmarks.experiments.data.source import Batches, Data, Source, Subset
from benchmarks.experiments.figures import Drawing, Panel, Series, line_panels
from benchmarks.experiments.lines import (
    AFTER,
    BEFORE,
    OWN,
    PLAIN,
    RECALIBRATED,
    Line,
    barriers,
    chosen,
    end_accuracies,
    grouped,
    mean_of,
)
from benchmarks.experiments.measure import Rebased, example_of, rebase, score, walk
from benchmarks.experiments.report import Report, require
from benchmarks.experiments.settings import Settings, seed_of
from benchmarks.experiments.training import Subject, Training, fresh, train
from benchmarks.support.methods_table import spread
from fxrebasin.colours import Meaning
from fxrebasin.merge import merge_many, recalibrate

ORIGINAL = "the original has 64, 256 and 512 channels"
_RETRAINED_SHARE = 0.2  # of the data to train on, kept for training the merged model
_SPLIT_SEED = 50  # above the numbers of models of a pair
_CONSISTENT = "cycle-consistent"
_METHODS = {"MergeMany": "merge_many", _CONSISTENT: "cycle_consistent", "plain mean": "mean"}
_MERGED_MEANINGS = {"MergeMany": Meaning.REBASED, "plain mean": Meaning.UNTOUCHED}
ONE, SCRATCH = "one of the models", "from scratch"


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Args:
        width: channels of the first group.
        epochs: of training.
        kernels: sides of the filters.
        counts: numbers of models to merge.
        split_epochs: of training on a part of the data.
        retrain_epochs: of training the merged model.
        steps: models on a line.
        calibration: images that statistics are taken on, in one batch.
        cycle_consistent: up to how many models are merged by that method too, as its cost grows
            with the square of their number.
    """

    width: int
    epochs: int
    kernels: tuple[int, ...]
    counts: tuple[int, ...]
    split_epochs: int
    retrain_epochs: int
    steps: int
    calibration: int
    cycle_consistent: int


FULL = Sizes(12, 6, (3, 6, 9, 12, 15), (3, 6, 9, 12), 30, 5, 7, 1024, 3)
QUICK = Sizes(4, 3, (3, 4), (3,), 4, 2, 3, 256, 0)


@dataclass(frozen=True)
class Merged:
    """A model made of several that were trained on other data, and then trained on.

    Args:
        seed: of the group.
        models: how many.
        method: how they were merged, or what is trained in the place of a merged model.
        accuracy_models: mean of theirs, 0 to 1, as they are.
        loss: held-out, nats, statistics recalibrated, before it is trained on.
        accuracy: likewise.
        loss_retrained: after it was trained on.
        accuracy_retrained: likewise.
    """

    seed: int
    models: int
    method: str
    accuracy_models: float
    loss: float
    accuracy: float
    loss_retrained: float
    accuracy_retrained: float


def sizes_of(settings: Settings) -> Sizes:
    """With the width and epochs of the command line.

    Args:
        settings: of the run.
    """
    sizes = settings.pick(FULL, QUICK)
    width, epochs = settings.width or sizes.width, settings.epochs or sizes.epochs
    return replace(sizes, width=width, epochs=epochs)


def subject(data: Data, sizes: Sizes, kernel: int) -> Subject:
    """hlb-CIFAR10's network.

    Args:
        data: to fit the network to.
        sizes: of the network.
        kernel: side of its filters.
    """
    network = {
        "channels": data.shape[0],
        "width": sizes.width,
        "kernel": kernel,
        "classes": data.classes,
    }
    training = Training(epochs=sizes.epochs, learning_rate=1e-2, weight_decay=0.5)
    return Subject("resnet", network, training)


def calibration_of(data: Data, sizes: Sizes) -> Batches:
    """The batch that BatchNorm statistics are recomputed on.

    Args:
        data: whose training items are used.
        sizes: of the experiment.
    """
    return Batches(data.train, sizes.calibration, 1)


def run(settings: Settings) -> Path:
    """hlb-CIFAR10 with filters of other sizes: barriers, recalibration, MergeMany, retraining."""
    start = time.process_time()
    sizes = sizes_of(settings)
    data = load_images(settings.data_dir)
    study = _Study(settings, sizes, data)
    for kernel in sizes.kernels:
        for seed in range(settings.seeds):
            study.kernel(kernel, seed)
    for seed in range(settings.seeds):
        for count in sizes.counts:
            study.merge(count, seed)
    if settings.quick:
        before, after = (
            mean_of(barriers(study.lines, name, RECALIBRATED)) for name in (BEFORE, AFTER)
        )
        require(after < before, f"the barrier falls; it went from {before:.4f} to {after:.4f}")
    return _write(study, time.process_time() - start)


class _Study:
    """What has been measured so far."""

    def __init__(self, settings: Settings, sizes: Sizes, data: Data) -> None:
        self.settings, self.sizes, self.data = settings, sizes, data
        self.lines: list[Line] = []
        self.rebased: list[Rebased] = []
        self.merged: list[Merged] = []

    def kernel(self, kernel: int, seed: int) -> None:
        """A pair of networks with filters of one size."""
        wanted = subject(self.data, self.sizes, kernel)
        store, source = self.settings.store, self.data.train
        a, b = (store.trained(wanted, source, seed_of(seed, number)) for number in range(2))
        rebased = rebase(b, a, self.data)
        self.rebased.append(rebased)
        for name, ends in {
            BEFORE: (a, b),
            AFTER: (a, rebased.model),
            OWN: (b, rebased.model),
        }.items():
            for treatment in (PLAIN, RECALIBRATED):
                calibration = calibration_of(self.data, self.sizes)
                curve = walk(
                    *ends,
                    self.data,
                    steps=self.sizes.steps,
                    calibration=calibration if treatment == RECALIBRATED else None,
                )
                self.lines.append(Line(str(kernel), seed, name, treatment, curve))

    def merge(self, count: int, seed: int) -> None:
        """Models trained on disjoint parts of the data, merged, and trained on another part."""
        kernel = min(self.sizes.kernels)
        wanted = subject(self.data, self.sizes, kernel).with_training(
            epochs=self.sizes.split_epochs, batch_size=32
        )
        parts, rest = _split(self.data.train, count, seed)
        models = [
            self.settings.store.trained(wanted, part, seed_of(seed, _SPLIT_SEED + number))
            for number, part in enumerate(parts)
        ]
        accuracy = mean_of([score(model, self.data.test)[1] for model in models])
        example = example_of(self.data)
        candidates: dict[str, nn.Module] = {
            name: merge_many(models, method=_METHODS[name], example_inputs=example)
            for name in _METHODS
            if name != _CONSISTENT or count <= self.sizes.cycle_consistent
        }
        candidates[ONE] = models[0]
        candidates[SCRATCH] = fresh(wanted, rest, seed_of(seed, _SPLIT_SEED + count))
        training = replace(wanted.training, epochs=self.sizes.retrain_epochs)
        for name, model in candidates.items():
            model = recalibrate(model, Batches(rest, len(rest))).eval()
            retrained = train(model, rest, training, seed)
            figures = (*score(model, self.data.test), *score(retrained, self.data.test))
            self.merged.append(Merged(seed, count, name, accuracy, *figures))


def _split(source: Source, count: int, seed: int) -> tuple[list[Subset], Subset]:
    """Parts of equal size, and one that is kept for training the merged model."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(source), generator=generator)
    kept = round(_RETRAINED_SHARE * len(source))
    size = (len(source) - kept) // count
    parts = order[kept : kept + count * size].split(size)
    return [Subset(source, part) for part in parts], Subset(source, order[:kept])


def _write(study: _Study, seconds: float) -> Path:
    settings, sizes = study.settings, study.sizes
    widths = ", ".join(str(sizes.width * factor) for factor in (1, 4, 8))
    report = settings.report(
        "hlb-CIFAR10: filter size and merging many",
        f"{study.data.describe()}, {' × '.join(map(str, study.data.shape[1:]))} pixels. "
        f"{settings.seeds} pairs per size, {widths} channels ({ORIGINAL}), {sizes.epochs} epochs",
    )
    errors = [rebased.error for rebased in study.rebased]
    report.say(
        f"{len(errors)} networks were rebased; in float64 their outputs differ from those of the "
        f"original by at most {max(errors):.1e} (relative)."
    )
    report.head("Filter size and the barrier")
    _say_barrier(report, study)
    _barrier_table(report, study)
    report.picture("lines", _draw_lines(study), "Losses and accuracies by filter size")
    report.picture("barrier", _draw_barrier(study), "Barrier by filter size")
    report.head("Merging many")
    _say_merged(report, study)
    _merged_table(report, study.merged)
    report.picture("merge_many", _draw_merged(study), "Merged models, before and after retraining")
    report.rows("points", [row for line in study.lines for row in line.points()])
    report.rows("barriers", [line.row() for line in study.lines])
    report.rows("merge_many", [asdict(merged) for merged in study.merged])
    return report.write(seconds)


def _say_barrier(report: Report, study: _Study) -> None:
    kernels = [str(kernel) for kernel in study.sizes.kernels]
    by_kernel = grouped(study.lines, lambda line: line.setting)

    def figure(kernel: str, name: str, treatment: str) -> float:
        return mean_of(barriers(by_kernel[kernel], name, treatment))

    first, last = kernels[0], kernels[-1]
    report.say(
        f"With filters of {first} × {first} rebasing takes the mean barrier from "
        f"{figure(first, BEFORE, PLAIN):.3f} to {figure(first, AFTER, PLAIN):.3f} nats as networks "
        f"are, and from {figure(first, BEFORE, RECALIBRATED):.3f} to "
        f"{figure(first, AFTER, RECALIBRATED):.3f} with statistics recomputed.",
    )
    helps = [k for k in kernels if figure(k, AFTER, RECALIBRATED) < figure(k, AFTER, PLAIN)]
    report.say(
        "After rebasing, recalibration lowers the barrier at "
        f"{'every filter size' if len(helps) == len(kernels) else ', '.join(helps) or 'no size'}."
    )
    if first != last:
        found = {kernel: figure(kernel, AFTER, RECALIBRATED) for kernel in kernels}
        best = min(kernels, key=lambda kernel: found[kernel])
        report.say(
            "The original found larger filters slightly better. Here the barrier after rebasing "
            f"(recalibrated) is lowest with {best} × {best}, {found[best]:.3f} nats, beside "
            f"{found[first]:.3f} with {first} × {first} and {found[last]:.3f} with {last} × "
            f"{last}. On images of {study.data.shape[-1]} pixels, halved three times, "
            "many taps of the largest filters see only padding. They move with their channels, as "
            "larger images need it, and are not compared, since nothing trained them."
        )
    nearer = [k for k in kernels if figure(k, OWN, RECALIBRATED) < figure(k, BEFORE, RECALIBRATED)]
    report.say(
        "The line from B to rebased B has, as in the original, a lower barrier than that from A to "
        f"B at {', '.join(nearer)}."
        if nearer
        else "The line from B to rebased B has nowhere a lower barrier than that from A to B, "
        "against what the original found."
    )


def _barrier_table(report: Report, study: _Study) -> None:
    names, treatments = (BEFORE, AFTER, OWN), (PLAIN, RECALIBRATED)
    rows = []
    for kernel, same in grouped(study.lines, lambda line: line.setting).items():
        middles = [
            [line.curve.midpoint[1] or 0.0 for line in chosen(same, name, RECALIBRATED)]
            for name in (BEFORE, AFTER)
        ]
        rows.append(
            [
                kernel,
                *(spread(barriers(same, n, t), ".3f") for t in treatments for n in names),
                spread(end_accuracies(chosen(same, BEFORE, PLAIN)), ".3f"),
                *(spread(middle, ".3f") for middle in middles),
            ]
        )
    lines = ("A–B", "A–B rebased", "B–B rebased")
    report.table(
        [
            "filter",
            *lines,
            *(f"{name}, recalibrated" for name in lines),
            "accuracy of A and B",
            "midway A–B, recalibrated",
            "midway A–B rebased, recalibrated",
        ],
        rows,
    )


def _say_merged(report: Report, study: _Study) -> None:
    share = f"{_RETRAINED_SHARE:.0%}"
    report.say(
        f"Each model is trained on a part of its own of {1 - _RETRAINED_SHARE:.0%} of the images "
        f"(filters of {min(study.sizes.kernels)} × {min(study.sizes.kernels)}); merged models, and "
        f"beside them one of the models and a new network, are then trained on the other {share}, "
        f"{study.sizes.retrain_epochs} epochs."
    )
    for count, same in grouped(study.merged, lambda m: m.models).items():
        by_method = grouped(same, lambda m: m.method)
        merged, plain, one = (
            mean_of([m.accuracy_retrained for m in by_method[name]])
            for name in ("MergeMany", "plain mean", ONE)
        )
        report.say(
            f"{count} models: {mean_of([m.accuracy_models for m in same]):.1%} accurate each, "
            f"{mean_of([m.accuracy for m in by_method['MergeMany']]):.1%} merged by MergeMany, "
            f"{merged:.1%} after retraining; the plain mean reaches {plain:.1%}, one of the models "
            f"{one:.1%}, a new network "
            f"{mean_of([m.accuracy_retrained for m in by_method[SCRATCH]]):.1%}."
        )


def _merged_table(report: Report, merged: Sequence[Merged]) -> None:
    counts = {m.models for m in merged}
    shown = [m for m in merged if m.models in (min(counts), max(counts))]
    report.table(
        [
            "models",
            "method",
            "accuracy of models",
            "merged, recalibrated",
            "retrained",
            "loss merged",
            "loss retrained",
        ],
        [
            [
                str(count),
                method,
                spread([m.accuracy_models for m in same], ".3f"),
                spread([m.accuracy for m in same], ".3f"),
                spread([m.accuracy_retrained for m in same], ".3f"),
                spread([m.loss for m in same], ".3f"),
                spread([m.loss_retrained for m in same], ".3f"),
            ]
            for (count, method), same in grouped(shown, lambda m: (m.models, m.method)).items()
        ],
    )


def _draw_lines(study: _Study) -> Drawing:
    titles = {str(k): f"filters of {k} × {k}" for k in study.sizes.kernels}
    panels = line_panels([x for x in study.lines if x.name != OWN], titles)
    return Drawing(panels, len(titles), f"hlb-CIFAR10 network, {study.data.name}")


def _draw_barrier(study: _Study) -> Drawing:
    kernels = study.sizes.kernels
    panels = []
    for treatment in (PLAIN, RECALIBRATED):
        series = tuple(
            Series(
                name,
                {
                    float(k): barriers(
                        [x for x in study.lines if x.setting == str(kernel)], name, treatment
                    )
                    for k, kernel in enumerate(kernels)
                },
                meaning,
            )
            for name, meaning in (
                (BEFORE, Meaning.UNTOUCHED),
                (AFTER, Meaning.REBASED),
                (OWN, Meaning.CONTROL),
            )
        )
        categories = tuple(str(kernel) for kernel in kernels)
        panels.append(Panel(treatment, "filter size", "barrier (nats)", series, categories))
    return Drawing(panels, 2, "Barrier by filter size")


def _draw_merged(study: _Study) -> Drawing:
    panels = []
    names = dict.fromkeys(m.method for m in study.merged)
    for title, figure in (
        ("merged, recalibrated", "accuracy"),
        ("retrained", "accuracy_retrained"),
    ):
        series = tuple(
            Series(
                name,
                {
                    float(n): [
                        getattr(m, figure)
                        for m in study.merged
                        if (m.models, m.method) == (n, name)
                    ]
                    for n in study.sizes.counts
                },
                _MERGED_MEANINGS.get(name),
            )
            for name in names
        )
        panels.append(Panel(title, "models", "held-out accuracy", series))
    return Drawing(panels, 2, "Models trained on parts of the data, merged and trained on")
