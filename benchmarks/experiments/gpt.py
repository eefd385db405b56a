"""Is a rebased language model as good as before, and how high is the barrier then?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

import fxrebasin
from benchmarks.experiments.data.source import Data
from benchmarks.experiments.data.text import load_text
from benchmarks.experiments.figures import Drawing, line_panels
from benchmarks.experiments.lines import (
    BEFORE,
    PLAIN,
    Line,
    barriers,
    chosen,
    end_accuracies,
    grouped,
    mean_of,
)
from benchmarks.experiments.measure import Rebased, example_of, rebase, walk
from benchmarks.experiments.report import Report, require
from benchmarks.experiments.settings import Settings, seed_of
from benchmarks.experiments.training import Subject, Training
from benchmarks.support.methods_table import spread
from fxrebasin.colours import Meaning
from fxrebasin.symmetry import Symmetry

ORIGINAL = "the original has width 384, 3 heads, 6 blocks and sequences of 512"
SAME_LOSS = 1e-5
ALL, WITHOUT, STREAM = "all classes", "residual stream held", "residual stream only"
_EMBEDDING = ("embedding.weight", 1)


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Args:
        width: of the residual stream.
        heads: per block.
        blocks: of attention and MLP.
        length: of a sequence in bytes.
        pieces: sequences to train on, and held out.
        epochs: of training.
        steps: models on a line.
    """

    width: int
    heads: int
    blocks: int
    length: int
    pieces: tuple[int, int]
    epochs: int
    steps: int


FULL = Sizes(96, 3, 3, 64, (16_000, 512), 1, 11)
QUICK = Sizes(24, 3, 1, 32, (1500, 128), 2, 5)


def sizes_of(settings: Settings) -> Sizes:
    """With the width and epochs of the command line.

    Args:
        settings: of the run.
    """
    sizes = settings.pick(FULL, QUICK)
    width, epochs = settings.width or sizes.width, settings.epochs or sizes.epochs
    return replace(sizes, width=width, epochs=epochs)


def text_of(settings: Settings, sizes: Sizes) -> Data:
    """The text that networks are trained on.

    Args:
        settings: of the run.
        sizes: of the experiment.
    """
    return load_text(settings.data_dir, sizes.length, sizes.pieces)


def subject(data: Data, sizes: Sizes, decay: float = 3e-2) -> Subject:
    """hlb-gpt's network, with its learning rate and weight decay.

    Args:
        data: to fit the network to.
        sizes: of the network.
        decay: weight decay of AdamW.
    """
    network = {
        "values": data.classes,
        "width": sizes.width,
        "heads": sizes.heads,
        "blocks": sizes.blocks,
        "length": sizes.length,
    }
    training = Training(epochs=sizes.epochs, batch_size=32, learning_rate=4e-3, weight_decay=decay)
    return Subject("gpt", network, training)


def run(settings: Settings) -> Path:
    """hlb-gpt on source text: equivalence, and the barrier with the residual stream or without."""
    start = time.process_time()
    sizes = sizes_of(settings)
    data = text_of(settings, sizes)
    wanted = subject(data, sizes)
    lines: list[Line] = []
    rebased: dict[str, list[Rebased]] = {}
    symmetry = None
    for seed in range(settings.seeds):
        a, b = (
            settings.store.trained(wanted, data.train, seed_of(seed, number)) for number in range(2)
        )
        symmetry = fxrebasin.analyze(b, example_of(data))
        found = {name: rebase(b, a, data, **options) for name, options in _ways(symmetry).items()}
        for name, result in found.items():
            rebased.setdefault(name, []).append(result)
        ends: dict[str, nn.Module] = {BEFORE: b}
        ends |= {_line(name): result.model for name, result in found.items()}
        for name, end in ends.items():
            curve = walk(a, end, data, steps=sizes.steps)
            meaning = Meaning.REBASED if name == _line(ALL) else None
            lines.append(Line("gpt", seed, name, PLAIN, curve, meaning))
    worst = max(result.loss_change for results in rebased.values() for result in results)
    require(worst <= SAME_LOSS, f"a rebased model has the same loss; one differs by {worst:.1e}")
    if settings.quick:
        before, after = (mean_of(barriers(lines, name)) for name in (BEFORE, _line(ALL)))
        require(after < before, f"the barrier falls; it went from {before:.4f} to {after:.4f}")
    return _write(settings, sizes, data, symmetry, lines, rebased, time.process_time() - start)


def _ways(symmetry: Symmetry) -> dict[str, dict[str, object]]:
    """Options of `match` by name: what may be permuted."""
    stream = [c.name for c in symmetry.classes if _EMBEDDING in c.axes]
    others = [c.name for c in symmetry.classes if c.name not in stream]
    return {ALL: {}, WITHOUT: {"classes": others}, STREAM: {"classes": stream}}


def _line(way: str) -> str:
    return f"A to rebased B, {way}"


def _write(
    settings: Settings,
    sizes: Sizes,
    data: Data,
    symmetry: Symmetry | None,
    lines: Sequence[Line],
    rebased: dict[str, list[Rebased]],
    seconds: float,
) -> Path:
    report = settings.report(
        "hlb-gpt on source text",
        f"{data.describe()}, pieces of {sizes.length} bytes. {settings.seeds} pairs, width "
        f"{sizes.width}, {sizes.heads} heads, {sizes.blocks} blocks ({ORIGINAL}), {sizes.epochs} "
        f"epoch{'s' if sizes.epochs > 1 else ''}",
    )
    report.head("Equivalence")
    _say_equivalence(report, symmetry, rebased)
    report.table(
        ["what may be permuted", "models", "relative error, float64", "change of loss, float32"],
        [
            [
                name,
                str(len(results)),
                f"{max(r.error for r in results):.1e}",
                f"{max(r.loss_change for r in results):.1e}",
            ]
            for name, results in rebased.items()
        ],
    )
    report.head("Barrier")
    _say_barrier(report, lines)
    report.table(
        ["line", "barrier", "loss midway", "accuracy midway"],
        [
            [
                name,
                spread([line.barrier for line in same], ".3f"),
                spread([line.curve.midpoint[0] for line in same], ".3f"),
                spread([line.curve.midpoint[1] or 0.0 for line in same], ".3f"),
            ]
            for name, same in grouped(lines, lambda line: line.name).items()
        ],
    )
    panels = line_panels(lines, {"gpt": ""}, unit="nats per byte")
    drawing = Drawing(panels, 2, f"hlb-gpt of width {sizes.width}")
    report.picture("lines", drawing, "Lines from A to B")
    report.rows("points", [row for line in lines for row in line.points()])
    report.rows("barriers", [line.row() for line in lines])
    report.rows(
        "equivalence",
        [
            {"permuted": name, "seed": k, "error": r.error, "loss_change": r.loss_change}
            for name, results in rebased.items()
            for k, r in enumerate(results)
        ],
    )
    return report.write(seconds)


def _say_equivalence(
    report: Report, symmetry: Symmetry | None, rebased: dict[str, list[Rebased]]
) -> None:
    every = [result for results in rebased.values() for result in results]
    worst = max(result.loss_change for result in every)
    classes = len(symmetry.classes) if symmetry else 0
    report.say(
        "In the original, the rebased model was worse than the original one. A permutation of "
        f"units cannot do that. Here {len(every)} models were rebased, over {classes} classes of "
        f"units; the largest change of the held-out loss is {worst:.1e} nats (allowed: "
        f"{SAME_LOSS:.0e}), and in float64 outputs agree to {max(r.error for r in every):.1e}."
    )


def _say_barrier(report: Report, lines: Sequence[Line]) -> None:
    found = {name: mean_of(barriers(lines, name)) for name in dict.fromkeys(x.name for x in lines)}
    before = found[BEFORE]
    ends = end_accuracies(chosen(lines, BEFORE))
    sentences = [
        f"A and B predict {mean_of(ends):.1%} of the held-out bytes. The barrier between them is "
        f"{before:.3f} nats per byte in the mean."
    ]
    for way in (ALL, WITHOUT, STREAM):
        share = 1 - found[_line(way)] / before
        word = "lower" if share > 0 else "higher"
        sentences.append(f"With {way} it is {found[_line(way)]:.3f}, {abs(share):.0%} {word}.")
    best = min((ALL, WITHOUT, STREAM), key=lambda way: found[_line(way)])
    sentences.append(f"The lowest is that with {best}.")
    report.say(*sentences)
