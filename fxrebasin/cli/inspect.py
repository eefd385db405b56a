"""`fxrebasin inspect`: what the symmetry of a model is."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fxrebasin.cli.loading import example_inputs, load_model
from fxrebasin.cli.options import EXISTING_FILE, model_options, output_option, overwrite_option


@click.command()
@model_options
@click.option(
    "--explain",
    type=(str, int),
    metavar="PARAM AXIS",
    help="Say what ties or pins one axis of a parameter or buffer, instead of the table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--weights", type=EXISTING_FILE, help="Weights of MODEL, whose constants count.")
@output_option("--svg", ".svg", help="Also draw the model, coloured by permutation class.")
@overwrite_option
def inspect(
    model: str,
    input_shapes: tuple[str, ...],
    state_buffers: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    explain: tuple[str, int] | None,
    as_json: bool,
    weights: Path | None,
    svg: Path | None,
    overwrite: bool,
) -> None:
    """Show the permutation classes of MODEL, its coverage, and what is pinned and why."""
    import fxrebasin
    from fxrebasin.show.drawing import dot_source, render_svg
    from fxrebasin.show.views import symmetry_document, symmetry_view
    from fxrebasin.storage.files import publish, refuse_existing
    from fxrebasin.terminal import output_console

    if svg is not None:
        refuse_existing([svg], overwrite=overwrite)
    module = load_model(model, weights)
    inputs = example_inputs(module, input_shapes)
    symmetry = fxrebasin.analyze(
        module, inputs.args, inputs.kwargs, state_buffers=state_buffers, outputs=outputs
    )
    if explain is not None:
        text = symmetry.explain(*explain)
        click.echo(json.dumps({"explanation": text}) if as_json else text)
    elif as_json:
        click.echo(json.dumps({"model": model, **symmetry_document(symmetry)}, indent=2))
    else:
        output_console().print(symmetry_view(model, symmetry))
    if svg is not None:
        publish(svg, render_svg(dot_source(symmetry, model)), overwrite=overwrite)
        click.echo(f"wrote {svg}", err=as_json)
