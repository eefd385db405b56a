"""What does each matching method reach on pairs of trained networks?

    python -m benchmarks.methods                          3 pairs of each kind, about 10 minutes
    python -m benchmarks.methods --seeds 1 --kinds mlp

Trains pairs of the demo's networks on scikit-learn's digits, and of a narrow one whose weights
differ more from seed to seed, matches B to A with every method, and measures the agreement of the
weights, the distance, the barrier on held-out images (BatchNorm statistics recomputed for every
network on the line) and the processor seconds that matching took. Writes `<out>/pairs.csv`, one
row per pair and method, and `<out>/methods.md`, the means, after every pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.nn import functional as F

import fxrebasin
from benchmarks.support.methods_table import Row, console_table, write_tables
from fxrebasin.demo.barrier import walk
from fxrebasin.demo.data import Digits, load_digits
from fxrebasin.demo.networks import DigitsMLP
from fxrebasin.demo.subjects import SUBJECTS, Subject
from fxrebasin.demo.training import Recipe, train
from fxrebasin.terminal import output_console, progress_bar

BATCH = 128

NARROW = Subject(
    title="narrow MLP",
    file_name="narrow.onnx",
    build=lambda: DigitsMLP(width=64),
    recipe=Recipe(epochs=20, learning_rate=3e-3),
    batch_norm=False,
)

Options = Callable[[Digits], dict[str, Any]]


def _data(digits: Digits) -> dict[str, Any]:
    images, labels = digits.train_images.split(BATCH), digits.train_labels.split(BATCH)
    return {"loader": list(zip(images, labels, strict=True))}


def _data_and_loss(digits: Digits) -> dict[str, Any]:
    return {**_data(digits), "loss": F.cross_entropy}


# Title, method, and the options that are not the defaults.
METHODS: tuple[tuple[str, str, Options], ...] = (
    ("weight", "weight", lambda digits: {}),
    ("weight, restarts=20", "weight", lambda digits: {"restarts": 20}),
    ("frank_wolfe", "frank_wolfe", lambda digits: {}),
    ("frank_wolfe, restarts=4", "frank_wolfe", lambda digits: {"restarts": 4}),
    ("sinkhorn", "sinkhorn", lambda digits: {}),
    ("activation", "activation", _data),
    ("straight_through", "straight_through", _data_and_loss),
    ("sinkhorn with a loss", "sinkhorn", _data_and_loss),
    ("learned", "learned", _data_and_loss),
)


@dataclass(frozen=True)
class Pair:
    """Two trained networks of one kind."""

    subject: Subject
    kind: str
    seed: int
    a: nn.Module
    b: nn.Module


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Pairs.")
@click.option("--kinds", default="mlp,narrow,resnet", show_default=True, help="Some of these.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results/methods"),
    show_default=True,
    help="Folder for the tables; those of an earlier run are replaced.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(seeds: int, kinds: str, out: Path, threads: int) -> None:
    """Match pairs of trained networks with every method."""
    torch.set_num_threads(threads)
    subjects = _choose(kinds)
    digits = load_digits()
    rows: list[Row] = []
    with progress_bar() as progress:
        task = progress.add_task("methods", total=seeds * len(subjects) * (len(METHODS) + 1))
        for kind, subject in subjects.items():
            for seed in range(seeds):
                progress.update(task, description=f"{kind}, pair {seed}")
                pair = _train(subject, kind, digits, seed)
                rows.append(_measure(pair, digits, "no matching", pair.b, 0.0))
                progress.advance(task)
                for title, method, options in METHODS:
                    rows.append(_match(pair, digits, title, method, options(digits)))
                    progress.advance(task)
                write_tables(out, rows)
    output_console().print(console_table(rows))
    click.echo(f"see {out / 'methods.md'}")


def _choose(kinds: str) -> dict[str, Subject]:
    known = {Path(subject.file_name).stem: subject for subject in (*SUBJECTS, NARROW)}
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise click.BadParameter(
            f"no kind {', '.join(unknown) or kinds!r}; there are {', '.join(known)}",
            param_hint="--kinds",
        )
    return {name: known[name] for name in names}


def _train(subject: Subject, kind: str, digits: Digits, seed: int) -> Pair:
    a, b = (train(subject.build, digits, subject.recipe, 2 * seed + k) for k in (0, 1))
    return Pair(subject, kind, seed, a, b)


def _match(pair: Pair, digits: Digits, title: str, method: str, options: Mapping[str, Any]) -> Row:
    example = digits.test_images[:32]
    began = time.process_time()
    p = fxrebasin.match(pair.b, pair.a, example, method=method, seed=pair.seed, **options)
    seconds = time.process_time() - began
    g = fxrebasin.apply(pair.b, p, example)
    fxrebasin.verify(pair.b, g, example).raise_if_failed()
    return _measure(pair, digits, title, g, seconds)


def _measure(pair: Pair, digits: Digits, title: str, rebased: nn.Module, seconds: float) -> Row:
    a, b = pair.a.state_dict(), rebased.state_dict()
    names = [name for name, _ in pair.a.named_parameters()]
    curve = walk(pair.a, rebased, digits, recompute_statistics=pair.subject.batch_norm)
    return Row(
        kind=pair.kind,
        seed=pair.seed,
        method=title,
        objective=sum(float((a[n].double() * b[n].double()).sum()) for n in names),
        distance=sum(float((a[n] - b[n]).double().square().sum()) for n in names) ** 0.5,
        barrier=curve.barrier,
        midpoint_accuracy=curve.midpoint[1],
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
