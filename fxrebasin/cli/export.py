"""`fxrebasin export`: a model as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.options import (
    CHECKPOINT,
    HowToRead,
    Inputs,
    Talk,
    input_options,
    json_option,
    output_option,
    overwrite_option,
    reading_options,
)
from fxrebasin.cli.talking import say, show


@click.command()
@click.argument("model")
@click.option(
    "--weights", type=CHECKPOINT, help="Weights of MODEL; those of its folder when left out."
)
@output_option("--out", ".onnx", required=True, help="File to write.")
@click.option(
    "--dynamic",
    multiple=True,
    metavar="INPUT=LABEL[,LABEL]",
    help="Labels of the axes of an input that may have any size, such as "
    "input_ids=batch,sequence; an axis without a label is fixed. Found when left out.",
)
@click.option(
    "--with-past",
    is_flag=True,
    help="Of a decoder of transformers: its cache of keys and values is an input and an output; "
    "of an encoder-decoder, the steps after the first.",
)
@click.option(
    "--first-step",
    is_flag=True,
    help="Of an encoder-decoder: the first step of its decoder, from what the encoder returns.",
)
@overwrite_option
@reading_options
@input_options
@json_option
def export(
    model: str,
    weights: Path | None,
    out: Path,
    dynamic: tuple[str, ...],
    with_past: bool,
    first_step: bool,
    overwrite: bool,
    as_json: bool,
    reading: HowToRead,
    inputs: Inputs,
) -> None:
    """Export MODEL to ONNX; the file appears only after it was checked and run on onnxruntime."""
    import fxrebasin
    from fxrebasin.cli.work import open_bench, read_for, refuse_outputs, weights_or_folder
    from fxrebasin.exporters.onnx.axes import parse_dynamic
    from fxrebasin.exporters.onnx.past import FIRST
    from fxrebasin.progress import waiting

    if with_past and first_step:
        raise click.UsageError("--with-past and --first-step are two files; write one at a time")
    axes = parse_dynamic(dynamic) if dynamic else None
    path = weights_or_folder(model, weights, "--weights")
    # Exporters put files into the folders of models, where they change nothing that is read.
    files = [place for place in read_for(model, path) if place.is_file()]
    refuse_outputs([out], inputs=files, overwrite=overwrite)
    bench = open_bench(model, inputs, reading)
    bench.lay(bench.read(path))
    out.parent.mkdir(parents=True, exist_ok=True)
    with waiting("exporting"):
        report = fxrebasin.export_onnx(
            bench.module,
            out,
            bench.example.args,
            bench.example.kwargs,
            overwrite=overwrite,
            dynamic=axes,
            with_past=FIRST if first_step else with_past,
            **inputs.choices,
        )
    talk = Talk(as_json, dry_run=False)
    show(talk, f"{report}\n{report.table()}", report.to_dict())
    say(talk, f"wrote {out}")
