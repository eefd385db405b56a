"""`fxrebasin inspect`: what the symmetry of a model is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fxrebasin.cli.onnx_files import is_onnx_file, reading_given, refuse_options
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
    symmetry_option,
)
from fxrebasin.cli.talking import say, show
from fxrebasin.picturing import PICTURES, kind_of

if TYPE_CHECKING:
    from fxrebasin.symmetry import Symmetry


@click.command()
@click.argument("model")
@click.option(
    "--explain",
    type=(str, int),
    metavar="PARAM AXIS",
    help="Say what ties or pins one axis of a parameter or buffer, instead of the table.",
)
@click.option("--weights", type=CHECKPOINT, help="Weights of MODEL, whose constants count.")
@output_option(
    "--picture", PICTURES, "--svg", help="Also draw the model, coloured by permutation class."
)
@output_option("--html", ".html", help="Also write a page to explore it: zoom, search, axes, pins.")
@overwrite_option
@symmetry_option
@reading_options
@input_options
@json_option
def inspect(
    model: str,
    explain: tuple[str, int] | None,
    weights: Path | None,
    picture: Path | None,
    html: Path | None,
    overwrite: bool,
    symmetry: str,
    reading: HowToRead,
    inputs: Inputs,
    as_json: bool,
) -> None:
    """Show the permutation classes of MODEL, its coverage, and what is pinned and why.

    MODEL may be an ONNX file.
    """
    from fxrebasin.cli.work import read_for, refuse_outputs
    from fxrebasin.progress import waiting
    from fxrebasin.show.drawing import dot_source, render
    from fxrebasin.show.page import html_page
    from fxrebasin.show.views import symmetry_document, symmetry_view
    from fxrebasin.storage.files import publish, together

    pictures = [path for path in (picture, html) if path is not None]
    read = [path for path in read_for(model, weights) if path.is_file()]
    refuse_outputs(pictures, inputs=read, overwrite=overwrite)
    found, shapes = _symmetry(model, weights, symmetry, reading, inputs)
    talk = Talk(as_json, dry_run=False)
    text = None if explain is None else found.explain(*explain)
    with together(), waiting("drawing"):
        if picture is not None:
            drawn = render(dot_source(found, model), kind_of(picture))
            publish(picture, drawn, overwrite=overwrite)
        if html is not None:
            publish(html, html_page(found, model).encode(), overwrite=overwrite)
    if text is not None:
        show(talk, text, {"explanation": text})
    else:
        document = {"model": model, "inputs": list(shapes), **symmetry_document(found)}
        show(talk, symmetry_view(model, found, shapes), document)
    for path in pictures:
        say(talk, f"wrote {path}")


def _symmetry(
    model: str, weights: Path | None, symmetry: str, reading: HowToRead, inputs: Inputs
) -> tuple[Symmetry, tuple[str, ...]]:
    """The symmetry of a model, and the inputs that it was run on, in words."""
    import fxrebasin
    from fxrebasin.cli.work import open_bench
    from fxrebasin.progress import waiting

    if is_onnx_file(model):
        refuse_options({"--weights": weights, **reading_given(reading, inputs)})
        with waiting("analysing"):
            return fxrebasin.analyze(model, outputs=inputs.outputs, symmetry=symmetry), ()
    bench = open_bench(model, inputs, reading)
    if weights is not None:
        bench.lay(bench.read(weights))
    with waiting("analysing"):
        found = fxrebasin.analyze(
            bench.module,
            bench.example.args,
            bench.example.kwargs,
            symmetry=symmetry,
            **inputs.choices,
        )
    return found, bench.shapes()
