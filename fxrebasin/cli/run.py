"""`fxrebasin run`: a command whose options are in a file."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.options import EXISTING_FILE, RECIPE


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    options_metavar="[OPTIONS OF THE COMMAND]",
)
@click.argument("recipe", type=EXISTING_FILE, metavar="RECIPE.yaml")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[MORE]")
@click.pass_context
def run(ctx: click.Context, recipe: Path, options: tuple[str, ...]) -> None:
    """Run the command that RECIPE.yaml describes.

    \b
    command: merge
    model: torchvision:resnet18
    models: [a.pt, b.pt]
    out: merged.pt
    weights: [0.3, 0.7]

    Keys are the long names of the command's options and its arguments; what is written behind
    RECIPE.yaml wins. Recipes of mergekit (models, merge_method, base_model, parameters, dtype)
    are understood too, and merge.
    """
    from fxrebasin.cli.recipes import arguments_of

    parent = ctx.parent
    if parent is None or not isinstance(parent.command, click.Group):
        raise click.UsageError("run is a command of fxrebasin")
    ctx.meta[RECIPE] = recipe
    name, arguments = arguments_of(parent.command, recipe, options)
    command = parent.command.commands[name]
    with command.make_context(name, arguments, parent=parent) as context:
        command.invoke(context)
