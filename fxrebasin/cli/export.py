"""`fxrebasin export`: a model as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.loading import example_inputs, load_model
from fxrebasin.cli.options import EXISTING_FILE, model_options, output_option, overwrite_option


@click.command()
@model_options
@click.option("--weights", type=EXISTING_FILE, required=True, help="Weights of MODEL.")
@output_option("--out", ".onnx", required=True, help="File to write.")
@overwrite_option
def export(
    model: str,
    input_shapes: tuple[str, ...],
    state_buffers: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    weights: Path,
    out: Path,
    overwrite: bool,
) -> None:
    """Export MODEL to ONNX; the file appears only after it was checked and run on onnxruntime."""
    import fxrebasin
    from fxrebasin.storage.files import refuse_existing

    refuse_existing([out], overwrite=overwrite)
    module = load_model(model, weights)
    inputs = example_inputs(module, input_shapes)
    out.parent.mkdir(parents=True, exist_ok=True)
    report = fxrebasin.export_onnx(
        module,
        out,
        inputs.args,
        inputs.kwargs,
        overwrite=overwrite,
        state_buffers=state_buffers,
        outputs=outputs,
    )
    click.echo(f"{report}\n{report.table()}\nwrote {out}")
