"""How long does finding the symmetry take, beside a plain forward pass?

    python -m benchmarks.analysis                        timm: the smallest model of each module
    python -m benchmarks.analysis --models torchvision   torchvision's 80 classifiers
    python -m benchmarks.analysis --models resnet18,vit_b_16
    python -m benchmarks.analysis --rounds 3             all of them three times: the best counts
    python -m benchmarks.analysis --models vit_b_16 --groups   what symmetry="all" takes in addition
    python -m benchmarks.analysis --growth               growth with depth, width, tokens, pixels
    python -m benchmarks.analysis --large all            stages and memory of ViTs, Llamas, Flux
    python -m benchmarks.analysis --large "Llama 8B"     of one of them; other rows stay

Models are on the meta device: parameters have shapes and no data. Both are timed on one thread in
CPU seconds, the forward pass as the best of three, the analysis as the better of two after a first.
On a machine that others use as well, models are timed again in later rounds, minutes apart.
Writes `<out>/<set>.csv` and `.md`; `--growth` writes `growth.csv`, `.md` and `.png`, `--large`
`large.csv` and `.md`.
"""

from __future__ import annotations

import copy
import csv
import gc
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from rich.table import Table
from torch import Tensor, nn

import fxrebasin
from benchmarks.support.growth import CURVES, Point, by_curve, exponent, markdown, measured, picture
from benchmarks.support.large_models import SUBJECTS, Stages, measured_apart, stages_from
from benchmarks.support.large_models import markdown as large_markdown
from benchmarks.support.meta import forget_values, parameters_on_meta
from benchmarks.support.timm_models import SMALLEST, image_size
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.storage.files import publish
from fxrebasin.terminal import output_console, progress_bar


@dataclass(frozen=True)
class Row:
    """One model; seconds are of CPU time on one thread, and exclude building the model."""

    model: str
    operators: int
    classes: int
    log10_order: float
    coverage: float
    unknown_operators: int
    forward_seconds: float
    analysis_seconds: float

    @property
    def ratio(self) -> float:
        """Analysis in forward passes."""
        return self.analysis_seconds / self.forward_seconds

    def better(self, other: Row) -> Row:
        """With the lesser seconds of the two."""
        return replace(
            self,
            forward_seconds=min(self.forward_seconds, other.forward_seconds),
            analysis_seconds=min(self.analysis_seconds, other.analysis_seconds),
        )


@click.command()
@click.option("--models", default="timm", show_default=True, help="timm, torchvision, or a,b,c.")
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results/analysis"),
    show_default=True,
    help="Folder for the tables; those of an earlier run of the same set are replaced.",
)
@click.option("--groups", is_flag=True, help="Time larger groups beside permutations; no tables.")
@click.option("--growth", is_flag=True, help="How time grows with size; nothing else is done.")
@click.option(
    "--large", multiple=True, help="Stages of a large model, or of all; nothing else is done."
)
def main(
    models: str, rounds: int, out: Path, groups: bool, growth: bool, large: tuple[str, ...]
) -> None:
    """Time the analysis of models beside a forward pass of theirs."""
    torch.set_num_threads(1)
    ensure_torchvision()
    if growth:
        _grow(out)
        return
    if large:
        _measure_large(large, out)
        return
    if groups:
        for name, build in _subjects(models):
            click.echo(groups_line(name, *build()))
        return
    label = models if models in ("timm", "torchvision") else "selected"
    best: dict[str, Row] = {}
    with progress_bar() as progress:
        subjects = list(_subjects(models)) * rounds
        task = progress.add_task("analysis", total=len(subjects))
        for name, build in subjects:
            progress.update(task, description=name)
            row = _measure(name, *build())
            best[name] = row.better(best.get(name, row))
            rows = list(best.values())
            table = _csv(rows, ratio=[row.ratio for row in rows])
            publish(out / f"{label}.csv", table.encode(), overwrite=True)
            publish(out / f"{label}.md", _markdown(rows, models, rounds).encode(), overwrite=True)
            gc.collect()
            progress.advance(task)
    output_console().print(_table(rows))
    click.echo(_summary(rows))


def _grow(out: Path) -> None:
    """Measure all curves, and write their table and their picture."""
    points: list[Point] = []
    with progress_bar() as progress:
        task = progress.add_task("growth", total=sum(len(curve.sizes) for curve in CURVES))
        for curve in CURVES:
            progress.update(task, description=curve.name)
            for point in measured(curve):
                points.append(point)
                progress.advance(task)
    publish(out / "growth.csv", _csv(points).encode(), overwrite=True)
    publish(out / "growth.md", markdown(points).encode(), overwrite=True)
    publish(out / "growth.png", picture(points), overwrite=True)
    for own in by_curve(points):
        click.echo(f"{own[0].curve}: exponent {exponent(own):.2f}")


def _measure_large(which: Sequence[str], out: Path) -> None:
    """Measure large models one after the other; each row is written when it was measured."""
    names = list(SUBJECTS) if "all" in which else which
    if not SUBJECTS.keys() >= {*names}:
        raise click.BadParameter(f"--large takes all, or one of: {', '.join(SUBJECTS)}")
    table = out / "large.csv"
    known: dict[str, Stages] = {}
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            known = {row["model"]: stages_from(row) for row in csv.DictReader(file)}
    with progress_bar() as progress:
        for name in progress.track(names, description="large models"):
            known[name] = measured_apart(name)
            rows = [known[name] for name in SUBJECTS if name in known]
            publish(table, _csv(rows).encode(), overwrite=True)
            publish(out / "large.md", large_markdown(rows).encode(), overwrite=True)
    for row in rows:
        click.echo(f"{row.model}: grouping {row.ratio:.2f} x propagation, peak {row.peak:.2f} GiB")


Subject = tuple[str, Callable[[], tuple[nn.Module, Tensor]]]


def _subjects(models: str) -> Iterator[Subject]:
    from torchvision import models as library

    if models == "timm":
        yield from ((name, _timm(name)) for name, _ in SMALLEST.values())
        return
    known = library.list_models(module=library)
    names = known if models == "torchvision" else [name.strip() for name in models.split(",")]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"torchvision has no classifier {name!r}")
        yield name, _torchvision(name)


def _timm(name: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        import timm

        model = forget_values(timm.create_model(name, pretrained=False).eval())
        return model, torch.empty(1, *image_size(model), device="meta")

    return build


def _torchvision(name: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        from torchvision import models as library

        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with parameters_on_meta():
            model = library.get_model(name, **options).eval()
        size = 299 if name == "inception_v3" else 224
        return model, torch.empty(1, 3, size, size, device="meta")

    return build


def _measure(name: str, model: nn.Module, images: Tensor) -> Row:
    with torch.no_grad():
        on_meta = copy.deepcopy(model).to("meta")
        forward = _best(3, lambda: on_meta(images))
    symmetry = fxrebasin.analyze(model, images)
    analysis = _best(2, lambda: fxrebasin.analyze(model, images))
    return Row(
        name,
        sum(symmetry.operators.values()),
        len(symmetry.classes),
        symmetry.log10_order(),
        symmetry.coverage(),
        len(symmetry.unknown_operators),
        forward,
        analysis,
    )


def groups_line(name: str, model: nn.Module, images: Tensor) -> str:
    """How much longer it takes to look for all groups than for permutations.

    Args:
        name: of the model.
        model: on any device.
        images: its input.
    """
    both = [
        _best(3, lambda kind=kind: fxrebasin.analyze(model, images, symmetry=kind))  # type: ignore[misc]
        for kind in ("permutation", "all")
    ]
    return (
        f"{name}: permutation {both[0]:.2f} s, all {both[1]:.2f} s, {both[1] / both[0]:.1f} times"
    )


def _best(repeats: int, call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


_COLUMNS = (
    ("operators", "operators", "d"),
    ("classes", "classes", "d"),
    ("log10_order", "log10 order", ".3f"),
    ("coverage", "coverage", ".2%"),
    ("unknown_operators", "unknown", "d"),
    ("forward_seconds", "forward s", ".3f"),
    ("analysis_seconds", "analysis s", ".3f"),
    ("ratio", "ratio", ".1f"),
)


def _cells(row: Row) -> list[str]:
    return [row.model, *(format(getattr(row, key), style) for key, _, style in _COLUMNS)]


def _table(rows: Sequence[Row]) -> Table:
    table = Table()
    table.add_column("model", no_wrap=True)
    for _, title, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _summary(rows: Sequence[Row]) -> str:
    seconds = [row.analysis_seconds for row in rows]
    slowest = max(rows, key=lambda row: row.analysis_seconds)
    return (
        f"{len(rows)} models: median {statistics.median(seconds):.2f} s, "
        f"longest {slowest.analysis_seconds:.2f} s ({slowest.model}), "
        f"median {statistics.median(row.ratio for row in rows):.1f} forward passes"
    )


def _csv(rows: Sequence[Row] | Sequence[Point] | Sequence[Stages], **more: Sequence[float]) -> str:
    """A table of rows, with more columns after their own."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=[*asdict(rows[0]), *more], lineterminator="\n")
    writer.writeheader()
    for number, row in enumerate(rows):
        own = {name: values[number] for name, values in more.items()}
        writer.writerow({**asdict(row), **own})
    return buffer.getvalue()


def _markdown(rows: Sequence[Row], models: str, rounds: int) -> str:
    titles = ["model", *(title for _, title, _ in _COLUMNS)]
    lines = [
        "# Time to find the symmetry, beside a plain forward pass on meta tensors",
        "",
        f"{_summary(rows)}. CPU seconds on one thread, torch {torch.__version__};",
        f"`python -m benchmarks.analysis --models {models} --rounds {rounds}`.",
        "",
        f"| {' | '.join(titles)} |",
        f"|{' --- |' * len(titles)}",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
