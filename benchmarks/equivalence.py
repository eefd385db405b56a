"""Does a random element of the symmetry group leave models unchanged, in ONNX files too?

    python -m benchmarks.equivalence                        a set of 12 models, a few minutes
    python -m benchmarks.equivalence --models torchvision   all 80 classifiers, some hours
    python -m benchmarks.equivalence --models timm          the smallest model of each module
    python -m benchmarks.equivalence --models transformers  small configurations
    python -m benchmarks.equivalence --models resnet18,timm:test_vit,transformers:gpt2 --skip-onnx

Each model gets random weights and BatchNorm statistics, is analysed, and is permuted by an element
drawn uniformly from its group. The permuted model is compared with the original in float64, then
exported, and its ONNX file compared with the original on onnxruntime in float32. Both comparisons
are on the inputs and on a set with other values and one row more. A control with one tensor left
unpermuted has to differ: it shows that the comparison would have noticed.

ONNX-in: the original is exported, too, and its file is re-based towards that of the permuted
model, of which it knows nothing else. The group of the file has to be at least as large as the
model's, and the result that of the permuted model bit for bit.

A run goes on where an earlier one of the same set stopped: what passed is kept, what is new is
measured first, and then what failed, smaller models before larger ones. Each model has a process of
its own and so much processor time. Writes `<out>/<set>.csv` and `.md` after every model; the exit
code is 1 if any model fails.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import fxrebasin
from benchmarks.support.equivalence_models import SETS, Subject, build, is_known
from benchmarks.support.equivalence_process import measured_apart
from benchmarks.support.equivalence_table import Row, console_table, read_rows, write_tables
from benchmarks.support.randomise import forgetful
from fxrebasin.exporters.verify.equivalence import compare_float64, compare_onnxruntime
from fxrebasin.exporters.verify.onnx_session import OnnxModel
from fxrebasin.exporters.verify.references import reference_runs
from fxrebasin.exporters.verify.runs import Subject as Reference
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import bytes_of
from fxrebasin.running.freed import give_back_memory
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.terminal import output_console, progress_bar

# An error below this in the control would mean that the model hides wrong permutations.
LEAST_CONTROL_ERROR = 1e-6
# So many tensors at most are left unpermuted, one at a time, until one is noticed.
_FAULTS = 8
# Orders are sums of logarithms, which files may add up in another order.
_ORDER_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Settings:
    """What is the same for all models; images are of this size, if a model takes such."""

    size: int = 96
    seed: int = 0
    onnx: bool = True
    threads: int | None = None


@click.command()
@click.option(
    "--models", default="default", show_default=True, help=f"{', '.join(SETS)}, or a,b,c."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results/equivalence"),
    show_default=True,
    help="Folder for the tables.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; its own default.")
@click.option("--size", type=click.IntRange(min=32), default=Settings.size, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--skip-onnx", is_flag=True, help="Only float64.")
@click.option(
    "--resume/--anew", default=True, show_default=True, help="Keep what passed in an earlier run."
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=900,
    show_default=True,
    help="Seconds of processor time for a model; 0: no limit, and all in one process.",
)
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
    limit: int,
) -> None:
    """Permute models at random and measure what changes."""
    names, label = _choose(models)
    settings = Settings(size=size, seed=seed, onnx=not skip_onnx, threads=threads)
    before = read_rows(out / f"{label}.csv") if resume else []
    found = {row.model: row for row in before}
    pending = _pending(names, found, settings)
    with progress_bar() as progress:
        task = progress.add_task("equivalence", total=len(pending))
        for name in pending:
            progress.update(task, description=name)
            found[name] = _row_of(name, settings, limit)
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
    if models in SETS:
        return SETS[models](), models
    names = [name.strip() for name in models.split(",") if name.strip()]
    unknown = [name for name in names if not is_known(name)]
    if unknown or not names:
        raise click.BadParameter(
            f"there is no model {', '.join(unknown) or models!r} in any of the sets",
            param_hint="--models",
        )
    return names, "selected"


def _pending(names: Sequence[str], found: dict[str, Row], settings: Settings) -> list[str]:
    """Models that are to be measured: those not known yet, then those that fail."""
    failed = [name for name in names if name in found and not found[name].passed]
    lacking = [
        name for name in names if name not in failed and not _complete(found, name, settings)
    ]
    return lacking + failed


def _complete(found: dict[str, Row], name: str, settings: Settings) -> bool:
    return name in found and (found[name].file_recovered is not None or not settings.onnx)


def _row_of(name: str, settings: Settings, limit: int) -> Row:
    if not limit:
        return measure(name, settings)
    return measured_apart(partial(_measure_for, name, settings), limit, Row(model=name))


def _measure_for(name: str, settings: Settings, tell: Callable[[Row], None]) -> Row:
    """In a process of its own."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return measure(name, settings, tell)


def measure(name: str, settings: Settings, tell: Callable[[Row], None] | None = None) -> Row:
    """Run all stages on one model; what goes wrong ends up in the row's reason.

    Args:
        name: of a model of one of the sets.
        settings: the inputs, the seed, and whether to export.
        tell: is given the row whenever there is more of it.
    """
    measurement = _Measurement(name, settings, tell)
    error = attempt(measurement.run)
    row = measurement.row
    return row if error is None else replace(row, reason=first_lines(error))


@dataclass(frozen=True)
class _Known:
    """What was found of a model.

    Attributes:
        log10_order: of its group.
        tensors: names of those that move.
        classes: names of its classes.
    """

    log10_order: float
    tensors: frozenset[str]
    classes: frozenset[str]


class _Measurement:
    """Fills a row stage by stage, so that a failure keeps what came before it."""

    def __init__(
        self, name: str, settings: Settings, tell: Callable[[Row], None] | None = None
    ) -> None:
        self.row = Row(model=name)
        self.settings = settings
        self._tell = tell

    def run(self) -> None:
        settings = self.settings
        with self._timed("build_seconds"):
            subject = build(self.row.model, settings.size, settings.seed)
        permutation, known = self._check_graph(subject)
        if settings.onnx:
            with tempfile.TemporaryDirectory() as folder:
                moved, source = Path(folder) / "permuted.onnx", Path(folder) / "original.onnx"
                self._check_onnx(subject, permutation, moved)
                with self._timed("file_seconds"):
                    inputs = subject.args or None, subject.kwargs or None
                    fxrebasin.export_onnx(subject.model, source, *inputs)
                del subject, permutation  # of large models there is no room for all of this
                gc.collect()
                give_back_memory()
                self._check_file(source, moved, known)
        self._note(reason=self._objection())

    def _check_graph(self, subject: Subject) -> tuple[fxrebasin.Permutation, _Known]:
        """Analyse, permute, and compare in PyTorch."""
        model, inputs = subject.model, (subject.args or None, subject.kwargs or None)
        count = sum(parameter.numel() for parameter in model.parameters())
        self._note(size=subject.size, parameters=count)
        with self._timed("analyse_seconds"):
            symmetry = fxrebasin.analyze(model, *inputs)
        self._note(
            classes=len(symmetry.classes),
            log10_order=symmetry.log10_order(),
            coverage=symmetry.coverage(),
            unknown_operators=" ".join(symmetry.unknown_operators),
        )
        permutation = symmetry.random(self.settings.seed)
        with self._timed("apply_seconds"):
            permuted = fxrebasin.apply(model, permutation, *inputs)
        with self._timed("float64_seconds"):
            report = compare_float64(model, permuted, subject.args, subject.kwargs)
            del permuted  # of large models there is no room for it beside what follows
            control = _error_of_faults(subject, permutation)
        self._note(float64_error=report.max_rel, control_error=control)
        report.raise_if_failed()
        names = frozenset(item.name for item in symmetry.classes)
        return permutation, _Known(symmetry.log10_order(), frozenset(symmetry.layout), names)

    def _check_onnx(self, subject: Subject, permutation: fxrebasin.Permutation, path: Path) -> None:
        """Export the permuted module, which unlike its graph is written as the original is."""
        args, kwargs = subject.args, subject.kwargs
        moved = _with_weights(
            subject.model, permutation.permute_state_dict(subject.model.state_dict())
        )
        with self._timed("onnx_seconds"):
            fxrebasin.export_onnx(moved, path, args or None, kwargs or None)
            del moved
            session = OnnxModel(path)
            dynamic = session.batch_is_dynamic(subject.model, args, kwargs)
            references = reference_runs(Reference(subject.model), args, kwargs, any_batch=dynamic)
            report = compare_onnxruntime(session, references)
        self._note(
            onnx_error=report.max_rel,
            smallest_tolerance=report.smallest_tolerance,
            tolerance=report.tolerance,
        )
        report.raise_if_failed()

    def _check_file(self, source: Path, reference: Path, known: _Known) -> None:
        out, exporting = source.with_name("rebased.onnx"), self.row.file_seconds or 0.0
        with self._timed("file_seconds"):
            found = fxrebasin.onnx_transform(source, ref=reference, out=out)
        self._note(
            file_seconds=exporting + (self.row.file_seconds or 0.0),
            file_log10_order=found.log10_order,
            file_error=None if found.equivalence is None else found.equivalence.max_rel,
            file_recovered=_share_alike(out, reference),
            file_larger=_only_in(found, known),
        )

    def _objection(self) -> str:
        row = self.row
        if row.unknown_operators:
            return f"operators without a rule: {row.unknown_operators}"
        error = row.control_error
        if error is None or not error > LEAST_CONTROL_ERROR:
            return f"the comparison is blind: a wrong permutation gave a relative error of {error}"
        order, of_file = row.log10_order or 0.0, row.file_log10_order
        if of_file is not None and of_file < order * (1 - _ORDER_TOLERANCE):
            return f"the file has the order {of_file:.3f} instead of {order:.3f}"
        if row.file_recovered is not None and row.file_recovered < 1:
            return "the file that was re-based is not that of the permuted model"
        return ""

    def _note(self, **values: Any) -> None:
        self.row = replace(self.row, **values)
        if self._tell is not None:
            self._tell(self.row)

    @contextmanager
    def _timed(self, column: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._note(**{column: time.perf_counter() - start})


def _only_in(found: fxrebasin.RebasinReport, known: _Known) -> str:
    """Tensors that move in a file alone, then classes that it alone has, if its group is larger."""
    if found.certificate is None or found.log10_order <= known.log10_order + _ORDER_TOLERANCE:
        return ""
    tensors = [name for name in found.certificate.layout if name not in known.tensors]
    named = [item.name for item in found.certificate.classes]
    classes = [name for name in named if name not in known.classes]
    return " ".join([*tensors, *classes])


def _share_alike(one: Path, two: Path) -> float:
    """Which part of the tensors of a file another file has bit for bit."""
    mine, theirs = read(one).parsed.tensors, read(two).parsed.tensors
    alike = [name in theirs and bytes_of(mine[name]) == bytes_of(theirs[name]) for name in mine]
    return sum(alike) / len(alike)


def _error_of_faults(subject: Subject, permutation: fxrebasin.Permutation) -> float:
    """The error that one tensor left as it was makes, of several the first that is noticed.

    Some tensors matter to nothing, such as the bias of keys; so the first that would have changed
    is followed by others, evenly from all the rest.
    """
    state = subject.model.state_dict()
    permuted = permutation.permute_state_dict(state)
    changed = [name for name, tensor in state.items() if not tensor.equal(permuted[name])]
    largest = 0.0
    for victim in changed[:: max(len(changed) // _FAULTS, 1)]:
        faulty = _with_a_fault(subject.model, permuted, victim)
        found = compare_float64(subject.model, faulty, subject.args, subject.kwargs).max_rel
        largest = max(largest, found)
        if largest > LEAST_CONTROL_ERROR:
            break
    return largest


def _with_a_fault(model: nn.Module, permuted: dict[str, Tensor], victim: str) -> nn.Module:
    """The permuted model, but for one tensor, under each of its names."""
    state, wrong = model.state_dict(), copy.copy(permuted)
    place = state[victim].data_ptr()
    wrong.update({name: tensor for name, tensor in state.items() if tensor.data_ptr() == place})
    return _with_weights(model, wrong)


def _with_weights(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A copy of a model with other weights, which forgets what it had made of the former ones."""
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return forgetful(other)


if __name__ == "__main__":
    main()
