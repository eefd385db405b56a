"""`fxrebasin interpolate`: models on the line between two checkpoints."""

from __future__ import annotations

import click

from fxrebasin.cli.options import (
    AS_THEY_ARE,
    PAIRWISE,
    HowToMatch,
    HowToRead,
    Inputs,
    Talk,
    Target,
    input_options,
    matching_options,
    reading_options,
    recalibrate_option,
    split,
    talk_options,
    target_options,
)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="[MODEL] A B")
@target_options("Weights of the models, with {t} in the name where there are several")
@click.option(
    "--t",
    "positions",
    multiple=True,
    callback=split,
    metavar="T[,T]",
    help="Where on the way: 0 is A, 1 is B. Half way when left out.",
)
@matching_options((*PAIRWISE, AS_THEY_ARE), "weight")
@recalibrate_option
@reading_options
@input_options
@talk_options
def interpolate(
    models: tuple[str, ...],
    positions: tuple[str, ...],
    recalibrate: str | None,
    target: Target,
    matching: HowToMatch,
    reading: HowToRead,
    inputs: Inputs,
    talk: Talk,
) -> None:
    """Align checkpoint B of MODEL with A, and write models on the line from A to B.

    Two folders of Hugging Face models need no MODEL. --out 'half-{t}.safetensors' names one file
    for each position.
    """
    from fxrebasin.cli.line import read_positions, run_interpolate

    places = read_positions(positions or ("0.5",), target)
    run_interpolate(models, places, recalibrate, target, (matching, reading, inputs), talk)
