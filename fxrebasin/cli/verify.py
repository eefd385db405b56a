"""`fxrebasin verify`: whether two models compute the same."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.group import CHECK_FAILED
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
    """Compare MODEL with OTHER: an .onnx file of it, or another checkpoint for it."""
    import fxrebasin
    from fxrebasin.cli.work import folder_of_weights, open_bench
    from fxrebasin.progress import waiting

    bench = open_bench(model, inputs, reading)
    weights = weights or folder_of_weights(model)
    if weights is not None:
        bench.lay(bench.read(weights))
    second = bench if other.suffix == ".onnx" else open_bench(model, inputs, reading)
    candidate = other if second is bench else second.lay(second.read(other))
    with waiting("comparing"):
        report = fxrebasin.verify(
            bench.module, candidate, bench.example.args, bench.example.kwargs, **inputs.choices
        )
    show(Talk(as_json, dry_run=False), f"{report}\n{report.table()}", report.to_dict())
    if not report.passed:
        ctx.exit(CHECK_FAILED)
