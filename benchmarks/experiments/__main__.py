"""`python -m benchmarks.experiments NAME`; `--help` lists the experiments."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.experiments import (
    gpt,
    mlp_weight_decay,
    peers,
    resnet_filter_size,
    symmetries,
    torchvision_pairs,
)
from benchmarks.experiments.figures import Drawing
from benchmarks.experiments.page import assemble
from benchmarks.experiments.settings import RESULTS, experiment
from benchmarks.experiments.symmetry_page import renewed, rows_of
from benchmarks.matching import CACHE as ENVIRONMENT
from fxrebasin.errors import FxRebasinError
from fxrebasin.storage.files import publish


@click.group()
def main() -> None:
    """Repeat one of the experiments that this project began with."""


main.command("mlp-weight-decay")(experiment(mlp_weight_decay.run))
main.command("resnet-filter-size")(experiment(resnet_filter_size.run))
main.command("gpt")(experiment(gpt.run))

peer_environment = click.option(
    "--environment",
    type=click.Path(file_okay=False, path_type=Path),
    default=ENVIRONMENT,
    show_default=True,
    help="Folder of the environment that rebasin is installed into, once.",
)
main.command("peers")(peer_environment(experiment(peers.run)))

own_options = (
    click.option("--models", help="Some of torchvision's, with commas."),
    click.option(
        "--checkpoint-a",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Weights of the one model named by --models (.pt, .pth, .safetensors).",
    ),
    click.option(
        "--checkpoint-b",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Other weights of it; the worse of the two is rebased to the better.",
    ),
    click.option(
        "--images",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="With checkpoints: held-out images, and images for statistics.",
    ),
)
torchvision_command = experiment(torchvision_pairs.run)
for option in reversed(own_options):
    torchvision_command = option(torchvision_command)
main.command("torchvision-pairs")(torchvision_command)

symmetries_command = peer_environment(experiment(symmetries.run))
for option in (
    click.option("--networks", help="Some of them, with commas."),
    click.option(
        "--keep",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder for finished rows, from which a run that was stopped goes on.",
    ),
    click.option("--only-kept", is_flag=True, help="Leave out rows that are not kept there."),
):
    symmetries_command = option(symmetries_command)
main.command("symmetries")(symmetries_command)


@main.command("page")
@click.option(
    "--results",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder that experiments wrote to.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/results.md"),
    show_default=True,
    help="The page; one that exists is replaced.",
)
def page_command(results: Path, out: Path) -> None:
    """Put the page of results together, and the figures of the page on symmetries beside it."""
    names = [name for name in main.commands if name not in ("page", "pictures")]
    try:
        missing = assemble(results, out, names)
        explained = out.parent / "symmetries.md"
        rows = results / "symmetries" / "barriers.csv"
        if explained.is_file() and rows.is_file():
            page = renewed(explained.read_text(encoding="utf-8"), rows_of(rows))
            publish(explained, page.encode(), overwrite=True)
    except FxRebasinError as error:
        raise click.ClickException(str(error)) from error
    for name in missing:
        click.echo(f"left out: {name}, which has no results in {results}", err=True)
    click.echo(f"see {out}")


@main.command("pictures")
@click.option(
    "--results",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Folder that experiments wrote to.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the pictures; beside their data when left out. Those that exist are replaced.",
)
@click.option("--kind", type=click.Choice(["png", "svg", "pdf"]), default="png", show_default=True)
def pictures_command(results: Path, out: Path | None, kind: str) -> None:
    """Draw the pictures anew from what the experiments stored beside them."""
    for path in sorted(results.glob("*/*.json")):
        place = (out or results) / path.relative_to(results).with_suffix(f".{kind}")
        publish(place, Drawing.read(path.read_bytes()).rendered(kind), overwrite=True)
        click.echo(f"see {place}")


if __name__ == "__main__":
    main()
