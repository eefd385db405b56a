"""`fxrebasin barrier`: how much worse models between two checkpoints are."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.options import (
    AS_THEY_ARE,
    PAIRWISE,
    HowToMatch,
    HowToRead,
    Inputs,
    Talk,
    evaluate_option,
    input_options,
    matching_options,
    overwrite_option,
    picture_option,
    reading_options,
    recalibrate_option,
    talk_options,
)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="[MODEL] A B")
@evaluate_option
@click.option(
    "--steps",
    type=click.IntRange(min=3),
    default=11,
    show_default=True,
    help="Number of models on the way, both ends included.",
)
@picture_option
@overwrite_option
@matching_options((*PAIRWISE, AS_THEY_ARE), "weight")
@recalibrate_option
@reading_options
@input_options
@talk_options
def barrier(
    models: tuple[str, ...],
    evaluate: str | None,
    steps: int,
    picture: Path | None,
    overwrite: bool,
    recalibrate: str | None,
    matching: HowToMatch,
    reading: HowToRead,
    inputs: Inputs,
    talk: Talk,
) -> None:
    """Measure the loss barrier between checkpoints A and B of MODEL, before and after aligning.

    The barrier is the largest excess of the loss on the line between two models over the straight
    line between their losses (Git Re-Basin, eq. 1).
    """
    from fxrebasin.cli.line import run_barrier

    if evaluate is None:
        raise click.UsageError("Missing option '--evaluate': how is a model's loss measured?")
    measuring = (evaluate, steps, recalibrate)
    run_barrier(models, measuring, (picture, overwrite), (matching, reading, inputs), talk)
