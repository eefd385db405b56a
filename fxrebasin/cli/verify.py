"""`fxrebasin verify`: whether two models compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fxrebasin.cli.endings import CHECK_FAILED
from fxrebasin.cli.onnx_files import is_onnx_file, reading_given, refuse_options
from fxrebasin.cli.options import (
    CHECKPOINT,
    HowToRead,
    Inputs,
    Talk,
    input_options,
    json_option,
    reading_options,
)
from fxrebasin.cli.talking import show

if TYPE_CHECKING:
    from fxrebasin.reports.equivalence import EquivalenceReport


@click.command()
@click.argument("model")
@click.argument("other", type=CHECKPOINT)
@click.option(
    "--weights",
    type=CHECKPOINT,
    help="Weights of MODEL; those of its folder, or random ones, when left out.",
)
@reading_options
@input_options
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    model: str,
    other: Path,
    weights: Path | None,
    as_json: bool,
    reading: HowToRead,
    inputs: Inputs,
) -> None:
    """Compare MODEL with OTHER: an .onnx file of it, or another checkpoint for it.

    MODEL may be an ONNX file if OTHER is one.
    """
    report = _report(model, other, weights, reading, inputs)
    show(Talk(as_json, dry_run=False), f"{report}\n{report.table()}", report.to_dict())
    if not report.passed:
        ctx.exit(CHECK_FAILED)


def _report(
    model: str, other: Path, weights: Path | None, reading: HowToRead, inputs: Inputs
) -> EquivalenceReport:
    import fxrebasin
    from fxrebasin.cli.work import folder_of_weights, open_bench
    from fxrebasin.progress import waiting

    if is_onnx_file(model):
        refuse_options({"--weights": weights, **reading_given(reading, inputs)})
        if not is_onnx_file(other):
            raise click.UsageError(f"OTHER has to be an .onnx file as MODEL is; found {other}")
        with waiting("comparing"):
            return fxrebasin.verify(model, other, outputs=inputs.outputs)
    bench = open_bench(model, inputs, reading)
    weights = weights or folder_of_weights(model)
    if weights is not None:
        bench.lay(bench.read(weights))
    second = bench if is_onnx_file(other) else open_bench(model, inputs, reading)
    candidate = other if second is bench else second.lay(second.read(other))
    with waiting("comparing"):
        return fxrebasin.verify(
            bench.module, candidate, bench.example.args, bench.example.kwargs, **inputs.choices
        )
