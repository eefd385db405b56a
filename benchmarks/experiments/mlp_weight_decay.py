"""Does weight decay lower the barrier between MLPs, and make many of them easier to merge?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.experiments.data.find import load_images
from benchmarks.experiments.data.source import Data
from benchmarks.experiments.figures import Drawing, Panel, Series, line_panels
from benchmarks.experiments.lines import (
    AFTER,
    BEFORE,
    OWN,
    PLAIN,
    Line,
    barriers,
    chosen,
    end_accuracies,
    grouped,
    mean_of,
    meaning_of,
)
from benchmarks.experiments.measure import NO_BARRIER, Rebased, example_of, rebase, score, walk
from benchmarks.experiments.report import Report, require
from benchmarks.experiments.settings import Settings, seed_of
from benchmarks.experiments.training import Subject, Training
from benchmarks.support.methods_table import spread
from fxrebasin.colours import Meaning
from fxrebasin.merge import merge_many

ORIGINAL_WIDTH = 784
_MERGED = {"merge_many": "MergeMany", "mean": "plain mean"}
_MERGED_MEANINGS = {"merge_many": Meaning.REBASED, "mean": Meaning.UNTOUCHED}
_CHANCE = 2.0  # times the accuracy of guessing; below this a network has learned nothing


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Args:
        width: units in a hidden layer.
        epochs: of training.
        learning_rate: the original has 7e-5, for one epoch of MNIST.
        decays: weight decays of the sweep.
        counts: numbers of models to merge.
        widths: of the width sweep.
        width_decays: weight decays of the width sweep.
        shown: weight decays whose lines are drawn.
        steps: models on a line.
    """

    width: int
    epochs: int
    learning_rate: float
    decays: tuple[float, ...]
    counts: tuple[int, ...]
    widths: tuple[int, ...]
    width_decays: tuple[float, ...]
    shown: tuple[float, ...]
    steps: int


FULL = Sizes(
    width=128,
    epochs=10,
    learning_rate=3e-4,
    decays=(0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9),
    counts=(2, 3, 4, 5, 6),
    widths=(32, 64, 128, 256),
    width_decays=(0.0, 0.02),
    shown=(0.0, 0.05, 0.1, 0.2, 0.9),
    steps=11,
)
QUICK = Sizes(
    width=32,
    epochs=4,
    learning_rate=3e-3,
    decays=(0.0, 0.01),
    counts=(2, 3),
    widths=(16,),
    width_decays=(0.0,),
    shown=(0.0, 0.01),
    steps=5,
)


@dataclass(frozen=True)
class Merged:
    """Several models, and one made of them.

    Args:
        weight_decay: that they were trained with.
        seed: of the group.
        models: how many.
        method: how they were merged.
        loss_models: mean of their held-out losses in nats.
        accuracy_models: mean of their accuracies, 0 to 1.
        loss_merged: of the merged model, in nats.
        accuracy_merged: of the merged model, 0 to 1.
    """

    weight_decay: float
    seed: int
    models: int
    method: str
    loss_models: float
    accuracy_models: float
    loss_merged: float
    accuracy_merged: float

    def row(self) -> dict[str, Any]:
        """With the original's normalisation: the models' figure divided by the merged one's."""
        return {
            **asdict(self),
            "loss_normalised": self.loss_models / self.loss_merged,
            "accuracy_normalised": self.accuracy_models / self.accuracy_merged,
        }


def subject(data: Data, sizes: Sizes, decay: float, width: int | None = None) -> Subject:
    """The original's network and training: Adam with weight decay in the gradient.

    Args:
        data: to fit the network to.
        sizes: of the experiment.
        decay: weight decay.
        width: of the network; of `sizes` when None.
    """
    inputs = 1
    for size in data.shape:
        inputs *= size
    training = Training(
        epochs=sizes.epochs,
        batch_size=32,
        learning_rate=sizes.learning_rate,
        weight_decay=decay,
        coupled=True,
        constant=True,
    )
    network = {"inputs": inputs, "width": width or sizes.width, "classes": data.classes}
    return Subject("mlp", network, training)


def sizes_of(settings: Settings) -> Sizes:
    """With the width and epochs of the command line.

    Args:
        settings: of the run.
    """
    sizes = asdict(settings.pick(FULL, QUICK))
    sizes["width"] = settings.width or sizes["width"]
    sizes["epochs"] = settings.epochs or sizes["epochs"]
    return Sizes(**sizes)


def run(settings: Settings) -> Path:
    """The original MLP experiment: weight decay and the barrier, MergeMany, width."""
    start = time.process_time()
    sizes = sizes_of(settings)
    data = load_images(settings.data_dir)
    study = _Study(settings, sizes, data)
    for decay in sizes.decays:
        for seed in range(settings.seeds):
            study.weight_decay(decay, seed)
    for width in sizes.widths:
        for decay in sizes.width_decays:
            for seed in range(settings.seeds):
                study.width(width, decay, seed)
    if settings.quick:
        _assert_robust(study)
    return _write(study, time.process_time() - start)


class _Study:
    """What has been measured so far."""

    def __init__(self, settings: Settings, sizes: Sizes, data: Data) -> None:
        self.settings, self.sizes, self.data = settings, sizes, data
        self.lines: list[Line] = []
        self.width_lines: list[Line] = []
        self.rebased: list[Rebased] = []
        self.merged: list[Merged] = []

    def weight_decay(self, decay: float, seed: int) -> None:
        """A pair, and models to merge, of one weight decay."""
        wanted = subject(self.data, self.sizes, decay)
        models = [self._trained(wanted, seed, k) for k in range(max(self.sizes.counts))]
        self.lines += self._pair(str(decay), seed, models[0], models[1], own=True)
        for count in self.sizes.counts:
            self.merged += self._merge(decay, seed, models[:count])

    def width(self, width: int, decay: float, seed: int) -> None:
        """A pair of one width."""
        wanted = subject(self.data, self.sizes, decay, width)
        a, b = (self._trained(wanted, seed, k) for k in range(2))
        self.width_lines += self._pair(f"{decay}/{width}", seed, a, b, own=False)

    def _trained(self, wanted: Subject, seed: int, number: int) -> nn.Module:
        return self.settings.store.trained(wanted, self.data.train, seed_of(seed, number))

    def _pair(self, setting: str, seed: int, a: nn.Module, b: nn.Module, own: bool) -> list[Line]:
        rebased = rebase(b, a, self.data)
        self.rebased.append(rebased)
        ends = {BEFORE: (a, b), AFTER: (a, rebased.model)}
        if own:
            ends[OWN] = (b, rebased.model)
        return [
            Line(setting, seed, name, PLAIN, walk(*pair, self.data, steps=self.sizes.steps))
            for name, pair in ends.items()
        ]

    def _merge(self, decay: float, seed: int, models: Sequence[nn.Module]) -> list[Merged]:
        scores = [score(model, self.data.test) for model in models]
        loss, accuracy = (mean_of(values) for values in zip(*scores, strict=True))
        example = example_of(self.data)
        found = []
        for method in _MERGED:
            merged = merge_many(models, method=method, example_inputs=example)
            figures = (loss, accuracy, *score(merged, self.data.test))
            found.append(Merged(decay, seed, len(models), method, *figures))
        return found


def _assert_robust(study: _Study) -> None:
    for decay, lines in grouped(study.lines, lambda line: line.setting).items():
        before, after = (mean_of(barriers(lines, name)) for name in (BEFORE, AFTER))
        require(
            after < before,
            f"weight decay {decay}: rebasing lowers the barrier; it went from {before:.4f} to "
            f"{after:.4f}",
        )


def _write(study: _Study, seconds: float) -> Path:
    settings, sizes = study.settings, study.sizes
    report = settings.report(
        "MLP: weight decay, width, and merging many",
        f"{study.data.describe()}. {settings.seeds} pairs per setting, width {sizes.width} (the "
        f"original has {ORIGINAL_WIDTH}), {sizes.epochs} epochs of batches of 32, Adam with a "
        f"learning rate of {sizes.learning_rate:g} and weight decay in the gradient",
    )
    _say_equivalence(report, study)
    report.head("Weight decay and the barrier")
    _say_barrier(report, study)
    _table(report, study.lines, "weight decay")
    report.picture("lines", _draw_lines(study), "Losses and accuracies between the models")
    report.picture("barrier", _draw_barrier(study), "Barrier by weight decay and by width")
    report.head("Width")
    _say_width(report, study)
    _table(report, study.width_lines, "weight decay / width")
    report.head("Merging many")
    _say_merged(report, study)
    _merged_table(report, study.merged)
    report.picture("merge_many", _draw_merged(study), "Merged models beside their parts")
    lines = [*study.lines, *study.width_lines]
    report.rows("points", [row for line in lines for row in line.points()])
    report.rows("barriers", [line.row() for line in lines])
    report.rows("merge_many", [merged.row() for merged in study.merged])
    return report.write(seconds)


def _say_equivalence(report: Report, study: _Study) -> None:
    errors = [rebased.error for rebased in study.rebased]
    changes = [rebased.loss_change for rebased in study.rebased]
    report.say(
        f"{len(errors)} networks were rebased. In float64 the outputs differ from those of the "
        f"original by at most {max(errors):.1e} (relative), and the held-out loss in float32 by at "
        f"most {max(changes):.1e} nats."
    )


def _collapsed(lines: Sequence[Line], classes: int) -> bool:
    return mean_of(end_accuracies(chosen(lines, BEFORE))) < _CHANCE / classes


def _say_barrier(report: Report, study: _Study) -> None:
    by_decay = grouped(study.lines, lambda line: line.setting)
    after = {decay: mean_of(barriers(lines, AFTER)) for decay, lines in by_decay.items()}
    before = {decay: mean_of(barriers(lines, BEFORE)) for decay, lines in by_decay.items()}
    dead = [d for d, lines in by_decay.items() if _collapsed(lines, study.data.classes)]
    alive = [decay for decay in by_decay if decay not in dead]
    gone = [decay for decay in alive if after[decay] < NO_BARRIER]
    first = alive[0]
    report.say(
        f"At weight decay {first} rebasing takes the mean barrier from {before[first]:.3f} to "
        f"{after[first]:.3f} nats.",
        _return_of(after, alive),
        f"It is below {NO_BARRIER} nats after rebasing at weight decay {', '.join(gone)}."
        if gone
        else f"It stays above {NO_BARRIER} nats after rebasing at every weight decay.",
        _accuracy_midway({decay: by_decay[decay] for decay in alive}),
        f"At weight decay {', '.join(dead)} the networks do not learn (accuracy below "
        f"{_CHANCE:.0f} times that of guessing), so that their lines say nothing."
        if dead
        else "",
    )


def _return_of(after: dict[str, float], alive: list[str]) -> str:
    lowest = min(alive, key=lambda decay: after[decay])
    last = alive[-1]
    end = (
        f"here it rises again, to {after[last]:.3f} at {last}."
        if after[last] > after[lowest]
        else "here it does not rise again."
    )
    return (
        f"After rebasing it is lowest at weight decay {lowest}, {after[lowest]:.3f}. The original "
        f"saw none left at 0.1, and a return of it when weight decay is too high; {end}"
    )


def _accuracy_midway(by_decay: dict[str, list[Line]]) -> str:
    """Where the original found models between A and rebased B that are better than both."""
    better = [
        decay
        for decay, lines in by_decay.items()
        if mean_of([line.curve.midpoint[1] or 0.0 for line in chosen(lines, AFTER)])
        > mean_of(end_accuracies(chosen(lines, BEFORE)))
    ]
    original = "The original found models half way to rebased B that are more accurate than both"
    where = f"here that holds at weight decay {', '.join(better)}" if better else "here none is"
    return f"{original} ends; {where}, in the mean."


def _say_width(report: Report, study: _Study) -> None:
    by_setting = grouped(study.width_lines, lambda line: line.setting)
    for decay in study.sizes.width_decays:
        narrow, wide = (
            by_setting[f"{decay}/{width}"]
            for width in (min(study.sizes.widths), max(study.sizes.widths))
        )
        ends = [mean_of(barriers(lines, AFTER)) for lines in (narrow, wide)]
        word = "falls" if ends[1] < ends[0] else "does not fall"
        report.say(
            f"At weight decay {decay} the barrier after rebasing {word} with the width: "
            f"{ends[0]:.3f} nats at {min(study.sizes.widths)}, {ends[1]:.3f} at "
            f"{max(study.sizes.widths)}."
        )


def _say_merged(report: Report, study: _Study) -> None:
    most = max(study.sizes.counts)
    by_decay = grouped(
        [m for m in study.merged if m.models == most], lambda merged: merged.weight_decay
    )
    better, worse = [], []
    for decay, merged in by_decay.items():
        aligned = [m for m in merged if m.method == "merge_many"]
        gain = mean_of([m.accuracy_merged - m.accuracy_models for m in aligned])
        (better if gain >= 0 else worse).append(str(decay))
    report.say(
        f"MergeMany of {most} models is, in the mean, at least as accurate as they are at weight "
        f"decay {', '.join(better)}."
        if better
        else f"MergeMany of {most} models is, in the mean, less accurate than they are, at every "
        "weight decay.",
    )
    report.say(
        _against_plain(by_decay),
        f"It is less accurate at {', '.join(worse)}." if better and worse else "",
        "Normalised figures are, as in the original, those of the models divided by those of the "
        "merged model: 1 is as good, above 1 a loss that merging lowered, below 1 an accuracy that "
        "merging raised. The plain mean of the same models, without alignment, is drawn beside.",
    )


def _against_plain(by_decay: dict[float, list[Merged]]) -> str:
    ahead = [
        f"{decay}"
        for decay, merged in by_decay.items()
        if mean_of([m.accuracy_merged for m in merged if m.method == "merge_many"])
        > mean_of([m.accuracy_merged for m in merged if m.method == "mean"])
    ]
    where = "every weight decay" if len(ahead) == len(by_decay) else ", ".join(ahead) or "none"
    return f"It is more accurate than the plain mean at {where}."


def _table(report: Report, lines: Sequence[Line], setting: str) -> None:
    rows = []
    for value, same in grouped(lines, lambda line: line.setting).items():
        middles = [str_of_midpoint(chosen(same, name)) for name in (BEFORE, AFTER)]
        ends = [
            loss
            for line in chosen(same, BEFORE)
            for loss in line.curve.losses[:: len(line.curve.losses) - 1]
        ]
        rows.append(
            [
                value,
                *(spread(barriers(same, name), ".3f") for name in (BEFORE, AFTER)),
                spread(barriers(same, OWN), ".3f") if chosen(same, OWN) else "–",
                spread(ends, ".3f"),
                spread(end_accuracies(chosen(same, BEFORE)), ".3f"),
                *middles,
            ]
        )
    report.table(
        [
            setting,
            "barrier A–B",
            "A–B rebased",
            "B–B rebased",
            "loss of A and B",
            "accuracy of A and B",
            "midway A–B",
            "midway A–B rebased",
        ],
        rows,
    )


def str_of_midpoint(lines: Sequence[Line]) -> str:
    """Accuracy half way: mean, least and most."""
    return spread([line.curve.midpoint[1] or 0.0 for line in lines], ".3f")


def _merged_table(report: Report, merged: Sequence[Merged]) -> None:
    rows = []
    most = max(m.models for m in merged)
    shown = [m for m in merged if m.models == most]
    for (decay, count), same in grouped(shown, lambda m: (m.weight_decay, m.models)).items():
        by_method = grouped(same, lambda m: m.method)
        aligned = by_method["merge_many"]
        rows.append(
            [
                f"{decay}",
                f"{count}",
                spread([m.loss_models for m in aligned], ".3f"),
                *(spread([m.loss_merged for m in found], ".3f") for found in by_method.values()),
                spread([m.accuracy_models for m in aligned], ".3f"),
                *(
                    spread([m.accuracy_merged for m in found], ".3f")
                    for found in by_method.values()
                ),
            ]
        )
    names = _MERGED.values()
    titles = ["weight decay", "models", "loss of models", *names, "accuracy of models", *names]
    report.table(titles, rows)


def _draw_lines(study: _Study) -> Drawing:
    titles = {str(decay): f"weight decay {decay}" for decay in study.sizes.shown}
    lines = [line for line in study.lines if line.setting in titles]
    panels = line_panels(lines, titles)
    return Drawing(panels, len(panels) // 2, f"MLP of width {study.sizes.width}, {study.data.name}")


def _draw_barrier(study: _Study) -> Drawing:
    decays, widths = study.sizes.decays, study.sizes.widths
    first = _sweep(study.lines, [str(decay) for decay in decays])
    panels = [
        Panel(
            f"width {study.sizes.width}",
            "weight decay",
            "barrier (nats)",
            first,
            tuple(f"{decay:g}" for decay in decays),
        ),
        *(
            Panel(
                f"weight decay {decay}",
                "width",
                "",
                _sweep(study.width_lines, [f"{decay}/{width}" for width in widths]),
                tuple(str(width) for width in widths),
            )
            for decay in study.sizes.width_decays
        ),
    ]
    return Drawing(panels, len(panels), f"Barrier between MLPs, {study.data.name}")


def _sweep(lines: Sequence[Line], settings: Sequence[str]) -> tuple[Series, ...]:
    by_setting = grouped(lines, lambda line: line.setting)
    return tuple(
        Series(
            name,
            {float(k): barriers(by_setting[s], name) for k, s in enumerate(settings)},
            meaning,
        )
        for name, meaning in dict.fromkeys((line.name, meaning_of(line)) for line in lines)
    )


def _draw_merged(study: _Study) -> Drawing:
    sizes = study.sizes
    shown = [m for m in study.merged if m.models == max(sizes.counts)]
    categories = tuple(f"{decay:g}" for decay in sizes.decays)

    def by_decay(method: str, figure: str) -> dict[float, list[float]]:
        return {
            float(k): [m.row()[figure] for m in shown if (m.weight_decay, m.method) == (d, method)]
            for k, d in enumerate(sizes.decays)
        }

    def by_count(decay: float, figure: str) -> dict[float, list[float]]:
        same = [m for m in study.merged if (m.weight_decay, m.method) == (decay, "merge_many")]
        return {float(n): [m.row()[figure] for m in same if m.models == n] for n in sizes.counts}

    raw, normalised = [], []
    for quantity in ("loss", "accuracy"):
        models = Series(
            "mean of the models", by_decay("merge_many", f"{quantity}_models"), Meaning.MODELS
        )
        merged = tuple(
            Series(label, by_decay(method, f"{quantity}_merged"), _MERGED_MEANINGS[method])
            for method, label in _MERGED.items()
        )
        title = f"{max(sizes.counts)} models"
        raw.append(
            Panel(title, "weight decay", f"held-out {quantity}", (models, *merged), categories)
        )
        lines = tuple(
            Series(f"weight decay {decay:g}", by_count(decay, f"{quantity}_normalised"))
            for decay in sizes.shown
        )
        y = f"{quantity} of models / of merged"
        normalised.append(Panel("MergeMany, normalised", "models", y, lines))
    return Drawing([*raw, *normalised], 2, f"Merging MLPs, {study.data.name}")
