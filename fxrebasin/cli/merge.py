"""`fxrebasin merge`: several checkpoints become one."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.onnx_files import (
    is_onnx_file,
    limits_given,
    reading_given,
    refuse_options,
    running_given,
)
from fxrebasin.cli.options import (
    AS_THEY_ARE,
    CHECKPOINT,
    COMBINATIONS,
    JOINT,
    PAIRWISE,
    ROUNDS,
    HowToMatch,
    HowToRead,
    Inputs,
    Limits,
    Talk,
    Target,
    either_picture_option,
    evaluate_option,
    input_options,
    limit_options,
    matching_options,
    reading_options,
    recalibrate_option,
    talk_options,
    target_options,
)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="[MODEL] A B [C ...]")
@target_options("The merged weights", also=(".onnx",))
@matching_options(
    (*PAIRWISE, *JOINT, ROUNDS, AS_THEY_ARE), "weight for two checkpoints, merge_many for more"
)
@click.option(
    "--combine",
    type=click.Choice(COMBINATIONS),
    default=COMBINATIONS[0],
    show_default=True,
    help="How the weights of aligned models become those of one.",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="[PATTERN=]W,W[,W...]",
    help="How much each checkpoint counts; for tensors whose names fit a pattern such as "
    "'layer4.*' (or 'class:NAME' of a permutation class) if there is one. The last that fits "
    "counts.",
)
@click.option(
    "--t",
    "position",
    multiple=True,
    metavar="[PATTERN=]T",
    help="Where between two checkpoints, for mean and slerp: 0 is the first, 1 the second.",
)
@click.option(
    "--density",
    multiple=True,
    metavar="[PATTERN=]SHARE",
    help="The share of every difference that ties (default 0.2) and dare (default 0.1) keep.",
)
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="Of the sum of differences."
)
@click.option(
    "--base",
    type=CHECKPOINT,
    help="The checkpoint that differences are taken from: task_arithmetic, ties, dare.",
)
@recalibrate_option
@click.option(
    "--repair",
    metavar="SOURCE",
    help="REPAIR on data (two checkpoints): units vary as much as those of both; SOURCE as above.",
)
@evaluate_option
@either_picture_option
@click.option(
    "--report/--no-report",
    default=True,
    show_default=True,
    help="Write what was done beside the result: OUT.json and OUT.md, in a folder "
    "fxrebasin.json and README.md.",
)
@reading_options
@input_options
@limit_options
@talk_options
def merge(
    models: tuple[str, ...],
    combine: str,
    weights: tuple[str, ...],
    position: tuple[str, ...],
    density: tuple[str, ...],
    scale: float,
    base: Path | None,
    recalibrate: str | None,
    repair: str | None,
    evaluate: str | None,
    picture: Path | None,
    report: bool,
    target: Target,
    matching: HowToMatch,
    reading: HowToRead,
    inputs: Inputs,
    limits: Limits,
    talk: Talk,
) -> None:
    """Align two or more checkpoints of MODEL, and merge them into one.

    Two folders of Hugging Face models need no MODEL: `fxrebasin merge A B --out C`. In front of
    more, MODEL may be any of them. The result is the file or folder of A with other weights: its
    names, dtypes and everything else stay as they are. A, B and C may be ONNX files, without MODEL;
    --out is one then.
    """
    if all(map(is_onnx_file, models)):
        from fxrebasin.cli.onnx_merging import FilesToMerge, merge_files

        useless: dict[str, object] = {
            **{"--combine": combine != COMBINATIONS[0], "--density": density, "--base": base},
            **{"--scale": scale != 1.0, "--recalibrate": recalibrate, "--repair": repair},
            **{"--evaluate": evaluate, **limits_given(limits)},
        }
        given = {**running_given(matching, target, talk), **reading_given(reading, inputs)}
        refuse_options({**useless, **given})
        files = FilesToMerge(tuple(map(Path, models)), weights, position, picture, report)
        merge_files(files, target, matching, inputs, talk)
        return
    if is_onnx_file(target.out):
        raise click.UsageError("--out is an ONNX file only where A and B are such files")
    from fxrebasin.cli.merging import Merge, Numbers, run_merge
    from fxrebasin.merge.combinations import Formula

    numbers = Numbers(weights, position, density, scale)
    asked = (recalibrate, repair, evaluate, picture, report)
    task = Merge(models, Formula(combine), numbers, base, *asked)
    run_merge(task, target, (matching, reading, inputs), limits, talk)
