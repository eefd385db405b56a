"""Lines between two trained classifiers of torchvision, and equivalence and time at full size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

import fxrebasin
from benchmarks.experiments.data.find import load_images
from benchmarks.experiments.data.source import Batches, Data, Subset
from benchmarks.experiments.figures import Drawing, line_panels
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
from benchmarks.experiments.measure import Rebased, has_batch_norm, permuted, rebase, score, walk
from benchmarks.experiments.networks.reduced import REDUCED
from benchmarks.experiments.report import Report, require
from benchmarks.experiments.settings import Settings, seed_of
from benchmarks.experiments.training import Subject, Training
from benchmarks.support.matching_models import build as build_full
from benchmarks.support.matching_models import draw as draw_state
from benchmarks.support.methods_table import spread
from fxrebasin.errors import InputError
from fxrebasin.storage.checkpoint import load_state_dict

MODELS = tuple(REDUCED)
_FULL_SIDE = 224
_RATES = {"vit_b_16": 1e-3}  # networks without BatchNorm take smaller steps
_RATE = 3e-3
_CHANCE = 1.5  # times the accuracy of guessing still counts as that
_LAG = 0.05  # of accuracy, that recomputed statistics alone gain


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Args:
        widths: by model, as `networks.reduced` understands them.
        epochs: of training.
        side: of the images in pixels.
        steps: models on a line.
        calibration: images that statistics are taken on.
        models: of torchvision.
        full_size: random pairs of full size per model.
    """

    widths: dict[str, int]
    epochs: int
    side: int
    steps: int
    calibration: int
    models: tuple[str, ...]
    full_size: int


FULL = Sizes(
    {"vit_b_16": 16, "wide_resnet50_2": 16, "efficientnet_b1": 16, "mobilenet_v3_large": 8},
    epochs=8,
    side=16,
    steps=7,
    calibration=512,
    models=MODELS,
    full_size=3,
)
QUICK = Sizes(
    FULL.widths,  # narrower networks stay near chance, rebased or not
    epochs=3,
    side=16,
    steps=3,
    calibration=128,
    models=("wide_resnet50_2",),
    full_size=0,
)


@dataclass(frozen=True)
class FullSize:
    """A random pair at full size.

    Args:
        model: of torchvision.
        seed: of the pair.
        parameters: number of elements.
        classes: of units.
        log10_order: of the symmetry group.
        analyse_seconds: of the processor.
        match_seconds: of the processor, with the analysis.
        error: relative, float64, of the permuted model.
    """

    model: str
    seed: int
    parameters: int
    classes: int
    log10_order: float
    analyse_seconds: float
    match_seconds: float
    error: float


def run(
    settings: Settings,
    models: str | None,
    checkpoint_a: Path | None,
    checkpoint_b: Path | None,
    images: int,
) -> Path:
    """Pairs of torchvision's classifiers: of two checkpoints, or trained here at reduced size.

    Args:
        settings: of the run.
        models: names, with commas; all when None.
        checkpoint_a: weights of A.
        checkpoint_b: weights of B.
        images: of those held out, and for statistics, with checkpoints.
    """
    start = time.process_time()
    sizes = _sizes_of(settings, models)
    if (checkpoint_a is None) != (checkpoint_b is None):
        raise InputError("pass --checkpoint-a and --checkpoint-b, or neither")
    if checkpoint_a is not None and checkpoint_b is not None:
        study = _of_checkpoints(settings, sizes, (checkpoint_a, checkpoint_b), images)
    else:
        study = _of_trained(settings, sizes)
        for name in sizes.models:
            study.full += [_full_size(name, seed) for seed in range(sizes.full_size)]
    if settings.quick:
        _assert_robust(study)
    return _write(study, time.process_time() - start)


def _sizes_of(settings: Settings, models: str | None) -> Sizes:
    sizes = settings.pick(FULL, QUICK)
    names = sizes.models if models is None else tuple(n.strip() for n in models.split(","))
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise InputError(f"no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    widths = {name: settings.width or sizes.widths.get(name, 4) for name in names}
    return replace(sizes, models=names, widths=widths, epochs=settings.epochs or sizes.epochs)


class _Study:
    """What has been measured so far."""

    def __init__(self, settings: Settings, sizes: Sizes, data: Data, words: str) -> None:
        self.settings, self.sizes, self.data, self.words = settings, sizes, data, words
        self.lines: list[Line] = []
        self.rebased: list[Rebased] = []
        self.full: list[FullSize] = []

    def pair(self, name: str, seed: int, a: nn.Module, b: nn.Module) -> None:
        """Rebase B and walk the original's three lines."""
        rebased = rebase(b, a, self.data)
        self.rebased.append(rebased)
        count = min(self.sizes.calibration, len(self.data.train))
        batches = Batches(self.data.train, count, 1)
        ends = {BEFORE: (a, b), AFTER: (a, rebased.model), OWN: (b, rebased.model)}
        treatments = (PLAIN, RECALIBRATED) if has_batch_norm(b) else (PLAIN,)
        for line, (first, last) in ends.items():
            for treatment in treatments:
                calibration = batches if treatment == RECALIBRATED else None
                steps = self.sizes.steps
                curve = walk(first, last, self.data, steps=steps, calibration=calibration)
                self.lines.append(Line(name, seed, line, treatment, curve))


def _of_trained(settings: Settings, sizes: Sizes) -> _Study:
    data = load_images(settings.data_dir, side=sizes.side, channels=3)
    study = _Study(settings, sizes, data, "Two networks each, trained from other random weights")
    for name in sizes.models:
        network = {"width": sizes.widths[name], "classes": data.classes, "side": sizes.side}
        rate = _RATES.get(name, _RATE)
        training = Training(epochs=sizes.epochs, learning_rate=rate, weight_decay=1.0)
        wanted = Subject(name, network, training)
        for seed in range(settings.seeds):
            a, b = (
                settings.store.trained(wanted, data.train, seed_of(seed, number))
                for number in range(2)
            )
            study.pair(name, seed, a, b)
    return study


def _of_checkpoints(
    settings: Settings, sizes: Sizes, files: tuple[Path, Path], images: int
) -> _Study:
    """What the original did: the worse of two sets of weights is rebased to the better one."""
    if len(sizes.models) != 1:
        raise InputError("checkpoints are of one model; name it with --models")
    name = sizes.models[0]
    data = _few(load_images(settings.data_dir, side=_FULL_SIDE, channels=3), images)
    pair = [_from_file(name, path) for path in files]
    losses = [score(model, data.test)[0] for model in pair]
    a, b = pair if losses[0] <= losses[1] else reversed(pair)
    words = f"The weights of {files[0].name} and {files[1].name}; A is the better of them"
    study = _Study(settings, replace(sizes, calibration=images), data, words)
    study.pair(name, 0, a, b)
    return study


def _from_file(name: str, path: Path) -> nn.Module:
    """The classifier of full size, with as many classes as the file has."""
    from fxrebasin.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from torchvision import models

    state = load_state_dict(path, models.get_model(name, weights=None).state_dict())
    classes = next(reversed(state.values())).shape[0]
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return permuted(model, state)


def _few(data: Data, count: int) -> Data:
    """With evenly spaced ones of its items."""
    parts = [
        Subset(part, torch.linspace(0, len(part) - 1, min(count, len(part))).long())
        for part in (data.train, data.test)
    ]
    return replace(data, train=parts[0], test=parts[1])


def _full_size(name: str, seed: int) -> FullSize:
    """Match a pair of random networks, and compare in float64."""
    model, images = build_full(name)
    states = [draw_state(model, images, 2 * seed + number) for number in range(2)]
    a, b = (permuted(model, state) for state in states)
    start = time.process_time()
    symmetry = fxrebasin.analyze(b, images)
    analysed = time.process_time() - start
    start = time.process_time()
    permutation = fxrebasin.match(b, a, images)
    matched = time.process_time() - start
    moved = permuted(b, permutation.permute_state_dict(b.state_dict()))
    report = fxrebasin.verify(b, moved, images)
    report.raise_if_failed()
    return FullSize(
        name,
        seed,
        sum(parameter.numel() for parameter in b.parameters()),
        len(symmetry.classes),
        symmetry.log10_order(),
        analysed,
        matched,
        report.max_rel,
    )


def _assert_robust(study: _Study) -> None:
    before, after = (mean_of(barriers(_treated(study.lines), name)) for name in (BEFORE, AFTER))
    require(after < before, f"the mean barrier falls; it went from {before:.4f} to {after:.4f}")


def _treated(lines: Sequence[Line]) -> list[Line]:
    """Recalibrated lines of networks with BatchNorm, and those of networks without."""
    with_statistics = {line.setting for line in lines if line.treatment == RECALIBRATED}
    return [
        line
        for line in lines
        if (line.treatment == RECALIBRATED) == (line.setting in with_statistics)
    ]


def _write(study: _Study, seconds: float) -> Path:
    settings, sizes = study.settings, study.sizes
    report = settings.report(
        "torchvision: pairs of classifiers",
        f"{study.data.describe()}, {' × '.join(map(str, study.data.shape))}. {study.words}; "
        f"{settings.seeds} pairs per model, {sizes.epochs} epochs",
    )
    _say_equivalence(report, study.rebased)
    report.head("Lines")
    report.say(*_sentences(study))
    report.say(*_near_chance(study.lines, study.data.classes))
    report.say(*_lagging(study.lines))
    _table(report, study)
    titles = {name: name for name in sizes.models}
    panels = line_panels(_treated(study.lines), titles)
    picture = Drawing(panels, len(panels) // 2, f"Classifiers of torchvision, {study.data.name}")
    report.picture("lines", picture, "Losses and accuracies between the models")
    if study.full:
        report.head("Full size, random weights")
        _full_table(report, study.full)
        report.rows("full_size", [asdict(row) for row in study.full])
    report.rows("points", [row for line in study.lines for row in line.points()])
    report.rows("barriers", [line.row() for line in study.lines])
    return report.write(seconds)


def _say_equivalence(report: Report, rebased: Sequence[Rebased]) -> None:
    report.say(
        f"{len(rebased)} networks were rebased; in float64 their outputs differ from those of the "
        f"original by at most {max(r.error for r in rebased):.1e} (relative), and the held-out "
        f"loss in float32 by at most {max(r.loss_change for r in rebased):.1e} nats. In the "
        "original, the rebased model was better than the one that it was made of; a permutation of "
        "units cannot do that either."
    )


def _sentences(study: _Study) -> list[str]:
    found = []
    for name, same in grouped(_treated(study.lines), lambda line: line.setting).items():
        before, after = (mean_of(barriers(same, line)) for line in (BEFORE, AFTER))
        how = f" ({RECALIBRATED})" if same[0].treatment == RECALIBRATED else ""
        found.append(f"{name}{how}: the mean barrier goes from {before:.3f} to {after:.3f} nats.")
    return found


def _near_chance(lines: Sequence[Line], classes: int) -> list[str]:
    """Networks that merge so badly that the barrier says nothing of the alignment."""
    found = []
    for name, same in grouped(_treated(lines), lambda line: line.setting).items():
        before, after = (
            mean_of([line.curve.midpoint[1] or 0.0 for line in chosen(same, line_name)])
            for line_name in (BEFORE, AFTER)
        )
        if max(before, after) < _CHANCE / classes:
            found.append(
                f"Half way, {name} is {before:.1%} accurate before and {after:.1%} after rebasing, "
                f"where guessing gives {1 / classes:.0%}: such losses say how sure wrong answers "
                "are, not how well the networks are aligned."
            )
    return found


def _lagging(lines: Sequence[Line]) -> list[str]:
    """Networks whose own statistics describe them badly, which says nothing of merging."""
    found = []
    for name, same in grouped(chosen(lines, BEFORE), lambda line: line.setting).items():
        by_treatment = grouped(same, lambda line: line.treatment)
        if RECALIBRATED not in by_treatment:
            continue
        own, again = (mean_of(end_accuracies(by_treatment[t])) for t in (PLAIN, RECALIBRATED))
        if again - own > _LAG:
            found.append(
                f"The BatchNorm statistics of {name} lag behind its weights after a training as "
                f"short as this: A and B are {own:.1%} accurate as they are, {again:.1%} with "
                "statistics recomputed."
            )
    return found


def _table(report: Report, study: _Study) -> None:
    rows = []
    for (name, treatment), same in grouped(
        study.lines, lambda line: (line.setting, line.treatment)
    ).items():
        middles = [
            spread([line.curve.midpoint[1] or 0.0 for line in chosen(same, line_name)], ".3f")
            for line_name in (BEFORE, AFTER)
        ]
        rows.append(
            [
                name,
                str(study.sizes.widths[name]),
                treatment,
                *(spread(barriers(same, line), ".3f") for line in (BEFORE, AFTER, OWN)),
                spread(end_accuracies(chosen(same, BEFORE)), ".3f"),
                *middles,
            ]
        )
    report.table(
        [
            "model",
            "width",
            "treatment",
            "barrier A–B",
            "A–B rebased",
            "B–B rebased",
            "accuracy of A and B",
            "midway A–B",
            "midway A–B rebased",
        ],
        rows,
    )


def _full_table(report: Report, full: Sequence[FullSize]) -> None:
    report.say(
        "Pairs of networks as torchvision builds them, with random weights and statistics: is the "
        "function kept, and what does matching take? Seconds are of one processor; matching "
        "includes an analysis of its own."
    )
    report.table(
        [
            "model",
            "pairs",
            "parameters",
            "classes",
            "log10 of order",
            "analyse s",
            "match s",
            "error",
        ],
        [
            [
                name,
                str(len(same)),
                f"{same[0].parameters:,}",
                str(same[0].classes),
                f"{same[0].log10_order:.1f}",
                spread([row.analyse_seconds for row in same], ".1f"),
                spread([row.match_seconds for row in same], ".1f"),
                f"{max(row.error for row in same):.1e}",
            ]
            for name, same in grouped(full, lambda row: row.model).items()
        ],
    )
