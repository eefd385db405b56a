"""`fxrebasin transform`: one checkpoint towards another."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.loading import example_inputs, load_model
from fxrebasin.cli.options import EXISTING_FILE, model_options, output_option, overwrite_option


@click.command()
@model_options
@click.option("--model-b", type=EXISTING_FILE, required=True, help="Weights to permute.")
@click.option("--ref", type=EXISTING_FILE, required=True, help="Weights to align them with.")
@output_option("--out", ".safetensors", required=True, help="Permuted weights.")
@output_option("--onnx", ".onnx", help="Also export the permuted model.")
@output_option("--certificate", ".safetensors", help="Also write the permutation.")
@click.option("--method", default="weight", show_default=True, help="How units are matched.")
@click.option("--seed", type=int, default=0, show_default=True)
@overwrite_option
def transform(
    model: str,
    input_shapes: tuple[str, ...],
    state_buffers: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    model_b: Path,
    ref: Path,
    out: Path,
    onnx: Path | None,
    certificate: Path | None,
    method: str,
    seed: int,
    overwrite: bool,
) -> None:
    """Permute the weights of one checkpoint of MODEL towards another's, and prove the result."""
    import fxrebasin
    from fxrebasin.show.views import report_view
    from fxrebasin.storage.checkpoint import save_state_dict
    from fxrebasin.storage.files import refuse_existing
    from fxrebasin.terminal import output_console

    files = [path for path in (onnx, out, certificate) if path is not None]
    if out == certificate:
        raise click.UsageError("--out and --certificate name the same file")
    refuse_existing(files, overwrite=overwrite)
    module = load_model(model, model_b)
    inputs = example_inputs(module, input_shapes)
    result = fxrebasin.transform(
        module,
        ref=ref,
        example_inputs=inputs.args,
        example_kwargs=inputs.kwargs,
        method=method,
        seed=seed,
        state_buffers=state_buffers,
        outputs=outputs,
    )
    report = result.meta["fxrebasin"]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    # The file that can fail to be made comes first, so that a failure leaves none.
    if onnx is not None:
        checked = fxrebasin.export_onnx(
            result,
            onnx,
            inputs.args,
            inputs.kwargs,
            overwrite=overwrite,
            state_buffers=state_buffers,
            outputs=outputs,
        )
        click.echo(str(checked))
    save_state_dict(out, result.state_dict(), overwrite=overwrite)
    if certificate is not None:
        report.certificate.save(certificate, overwrite=overwrite)
    output_console().print(report_view(report))
    for path in files:
        click.echo(f"wrote {path}")
