"""Draw units before and after rebasing, of the demo: `python -m benchmarks.units_picture`."""

from __future__ import annotations

from pathlib import Path

import click
import torch

import fxrebasin
from fxrebasin.demo.data import load_digits
from fxrebasin.demo.subjects import SUBJECTS
from fxrebasin.demo.training import train

PICTURE = Path("docs/units.png")


@click.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=PICTURE,
    show_default=True,
    help="The picture (.png, .svg or .pdf); one that exists is replaced.",
)
def main(out: Path) -> None:
    """Train two ResNets as the demo does, match them, and draw how alike their units are."""
    torch.set_num_threads(1)  # networks this small gain little from more
    subject, digits = SUBJECTS[1], load_digits()
    a, b = (train(subject.build, digits, subject.recipe, seed, lambda: None) for seed in range(2))
    p = fxrebasin.match(b, ref=a, example_inputs=digits.test_images[:32])
    title = f"{subject.title}: units of A and B"
    fxrebasin.plot_alignment(a, b, p, out, title=title, overwrite=True)
    click.echo(f"see {out}")


if __name__ == "__main__":
    main()
