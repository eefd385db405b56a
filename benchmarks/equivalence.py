"""Does a random element of the symmetry group leave torchvision's classifiers unchanged?

    python -m benchmarks.equivalence                      a set of 12 models, a few minutes
    python -m benchmarks.equivalence --models all         all 80, some hours
    python -m benchmarks.equivalence --models all --resume   the same, after an interruption
    python -m benchmarks.equivalence --models all --size 96  then --resume at 224 for those
                                                          that do not take small images
    python -m benchmarks.equivalence --models resnet18,vit_b_16 --skip-onnx

Each model gets random weights and BatchNorm statistics, is analysed, and is permuted by an element
drawn uniformly from its group. The permuted model is compared with the original in float64, then
exported, and its ONNX file compared with the original on onnxruntime in float32. A control with one
tensor left unpermuted has to differ: it shows that the comparison would have noticed.
Writes `<out>/<set>.csv` and `.md` after every model; the exit code is 1 if any model fails.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import fxrebasin
from benchmarks.support.equivalence_table import Row, console_table, read_rows, write_tables
from benchmarks.support.randomise import randomise
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.terminal import output_console, progress_bar

DEFAULT_MODELS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v3_large"),
    *("efficientnet_b0", "shufflenet_v2_x1_0", "squeezenet1_1", "googlenet"),
    *("vit_b_16", "swin_t", "convnext_tiny"),
)

# An error below this in the control would mean that the model hides wrong permutations.
LEAST_CONTROL_ERROR = 1e-6


@dataclass(frozen=True)
class Settings:
    """What is the same for all models: images are `[batch, 3, size, size]`."""

    size: int = 224
    batch: int = 2
    seed: int = 0
    onnx: bool = True


@click.command()
@click.option("--models", default="default", show_default=True, help="default, all, or a,b,c.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results/equivalence"),
    show_default=True,
    help="Folder for the tables; those of an earlier run of the same set are replaced.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; its own default.")
@click.option("--size", type=click.IntRange(min=32), default=224, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--skip-onnx", is_flag=True, help="Only float64.")
@click.option("--resume", is_flag=True, help="Keep what passed in an earlier run of the same set.")
@click.pass_context
def main(
    ctx: click.Context,
    models: str,
    out: Path,
    threads: int | None,
    size: int,
    seed: int,
    skip_onnx: bool,
    resume: bool,
) -> None:
    """Permute torchvision's classifiers at random and measure what changes."""
    if threads is not None:
        torch.set_num_threads(threads)
    ensure_torchvision()
    names, label = _choose(models)
    settings = Settings(size=size, seed=seed, onnx=not skip_onnx)
    before = read_rows(out / f"{label}.csv") if resume else []
    found = {row.model: row for row in before if row.passed}
    with progress_bar() as progress:
        task = progress.add_task("equivalence", total=len(names))
        for name in names:
            progress.update(task, description=name)
            if name not in found:
                found[name] = measure(name, settings)
                write_tables(out, label, [found[item] for item in names if item in found])
                gc.collect()
            if not found[name].passed:
                click.echo(f"{name}: {found[name].reason}", err=True)
            progress.advance(task)
    rows = [found[name] for name in names]
    output_console().print(console_table(rows))
    failed = [row.model for row in rows if not row.passed]
    click.echo(f"{len(rows) - len(failed)} of {len(rows)} pass; see {out / label}.csv and .md")
    if failed:
        ctx.exit(1)


def _choose(models: str) -> tuple[list[str], str]:
    from torchvision import models as library

    known = library.list_models(module=library)
    if models == "default":
        return list(DEFAULT_MODELS), "default"
    if models == "all":
        return known, "all"
    names = [name.strip() for name in models.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise click.BadParameter(
            f"torchvision has no classifier {', '.join(unknown) or models!r}", param_hint="--models"
        )
    return names, "selected"


def measure(name: str, settings: Settings) -> Row:
    """Run all stages on one model; what goes wrong ends up in the row's reason.

    Args:
        name: as `torchvision.models.get_model` knows it.
        settings: the inputs, the seed, and whether to export.
    """
    measurement = _Measurement(name, settings)
    error = attempt(measurement.run)
    row = measurement.row
    return row if error is None else replace(row, reason=first_lines(error))


class _Measurement:
    """Fills a row stage by stage, so that a failure keeps what came before it."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.row = Row(model=name, size=settings.size)
        self.settings = settings

    def run(self) -> None:
        settings = self.settings
        images = _draw_images(settings)
        with self._timed("build_seconds"):
            model = _build(self.row.model, images, settings.seed)
        self._note(parameters=sum(parameter.numel() for parameter in model.parameters()))
        with self._timed("analyse_seconds"):
            symmetry = fxrebasin.analyze(model, images)
        self._note(
            classes=len(symmetry.classes),
            log10_order=symmetry.log10_order(),
            coverage=symmetry.coverage(),
            unknown_operators=" ".join(symmetry.unknown_operators),
        )
        permutation = symmetry.random(settings.seed)
        with self._timed("apply_seconds"):
            permuted = fxrebasin.apply(model, permutation, images)
        with self._timed("float64_seconds"):
            report = fxrebasin.verify(model, permuted, images)
            control = fxrebasin.verify(model, _with_a_fault(model, permutation), images)
        self._note(float64_error=report.max_rel, control_error=control.max_rel)
        report.raise_if_failed()
        if settings.onnx:
            self._check_onnx(model, permuted, images)
        self._note(reason=self._objection())

    def _check_onnx(self, model: nn.Module, permuted: nn.Module, images: Tensor) -> None:
        with self._timed("onnx_seconds"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "permuted.onnx"
            fxrebasin.export_onnx(permuted, path, images)
            report = fxrebasin.verify(model, path, images)
        self._note(
            onnx_error=report.max_rel,
            smallest_tolerance=report.smallest_tolerance,
            tolerance=report.tolerance,
        )
        report.raise_if_failed()

    def _objection(self) -> str:
        if self.row.unknown_operators:
            return f"operators without a rule: {self.row.unknown_operators}"
        error = self.row.control_error
        if error is None or not error > LEAST_CONTROL_ERROR:
            return f"the comparison is blind: a wrong permutation gave a relative error of {error}"
        return ""

    def _note(self, **values: Any) -> None:
        self.row = replace(self.row, **values)

    @contextmanager
    def _timed(self, column: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._note(**{column: time.perf_counter() - start})


def _draw_images(settings: Settings) -> Tensor:
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randn(settings.batch, 3, settings.size, settings.size, generator=generator)


def _build(name: str, images: Tensor, seed: int) -> nn.Module:
    from fxrebasin.models.by_name import build_model

    model = build_model(f"torchvision:{name}").eval()
    randomise(model, images, seed)
    return model


def _with_a_fault(model: nn.Module, permutation: fxrebasin.Permutation) -> nn.Module:
    """The permuted model, but for one tensor: the first that would have changed."""
    state = model.state_dict()
    permuted = permutation.permute_state_dict(state)
    victim = next(name for name, tensor in state.items() if not tensor.equal(permuted[name]))
    faulty = copy.deepcopy(model)
    permuted[victim] = state[victim]  # in place, for a state may carry versions of its modules
    faulty.load_state_dict(permuted)
    return faulty


if __name__ == "__main__":
    main()
