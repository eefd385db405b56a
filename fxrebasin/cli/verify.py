"""`fxrebasin verify`: whether two models compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fxrebasin.cli.group import CHECK_FAILED
from fxrebasin.cli.loading import example_inputs, load_model
from fxrebasin.cli.options import EXISTING_FILE, model_options


@click.command()
@model_options
@click.argument("other", type=EXISTING_FILE)
@click.option("--weights", type=EXISTING_FILE, help="Weights of MODEL; random when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(
    ctx: click.Context,
    model: str,
    input_shapes: tuple[str, ...],
    state_buffers: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    other: Path,
    weights: Path | None,
    as_json: bool,
) -> None:
    """Compare MODEL with OTHER: an .onnx file of it, or another checkpoint for it."""
    import fxrebasin

    module = load_model(model, weights)
    inputs = example_inputs(module, input_shapes)
    candidate = other if other.suffix == ".onnx" else load_model(model, other)
    report = fxrebasin.verify(
        module,
        candidate,
        inputs.args,
        inputs.kwargs,
        state_buffers=state_buffers,
        outputs=outputs,
    )
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else f"{report}\n{report.table()}")
    if not report.passed:
        ctx.exit(CHECK_FAILED)
