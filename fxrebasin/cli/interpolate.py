"""`fxrebasin interpolate`: models on the line between two checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.onnx_files import (
    interpolate_files,
    is_onnx_file,
    limits_given,
    reading_given,
    refuse_options,
    running_given,
)
from fxrebasin.cli.options import (
    AS_THEY_ARE,
    PAIRWISE,
    HowToMatch,
    HowToRead,
    Inputs,
    Limits,
    Talk,
    Target,
    input_options,
    limit_options,
    matching_options,
    reading_options,
    recalibrate_option,
    split,
    talk_options,
    target_options,
    units_picture_option,
)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="[MODEL] A B")
@target_options(
    "Weights of the models, with {t} in the name where there are several", also=(".onnx",)
)
@click.option(
    "--t",
    "positions",
    multiple=True,
    callback=split,
    metavar="T[,T]",
    help="Where on the way: 0 is A, 1 is B. Half way when left out.",
)
@units_picture_option
@matching_options((*PAIRWISE, AS_THEY_ARE), "weight")
@recalibrate_option
@reading_options
@input_options
@limit_options
@talk_options
def interpolate(
    models: tuple[str, ...],
    positions: tuple[str, ...],
    recalibrate: str | None,
    picture: Path | None,
    target: Target,
    matching: HowToMatch,
    reading: HowToRead,
    inputs: Inputs,
    limits: Limits,
    talk: Talk,
) -> None:
    """Align checkpoint B of MODEL with A, and write models on the line from A to B.

    Two folders of Hugging Face models need no MODEL. --out 'half-{t}.safetensors' names one file
    for each position. A and B may be ONNX files, without MODEL; what is written are such, too.
    """
    from fxrebasin.cli.line import read_positions, run_interpolate

    places = read_positions(positions or ("0.5",), target)
    if len(models) == 2 and all(map(is_onnx_file, models)):
        given = {"--recalibrate": recalibrate, **running_given(matching, target, talk)}
        refuse_options({**given, **reading_given(reading, inputs), **limits_given(limits)})
        files = [Path(name) for name in models]
        interpolate_files(files, places, picture, target, matching, inputs, talk)
        return
    if is_onnx_file(target.out):
        raise click.UsageError("--out is an ONNX file only where A and B are such files")
    how = (matching, reading, inputs)
    run_interpolate(models, places, (recalibrate, picture), target, how, limits, talk)
