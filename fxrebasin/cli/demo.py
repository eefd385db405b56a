"""`fxrebasin demo`: the demonstration on small networks."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.options import Talk, debug_option, json_option, overwrite_option
from fxrebasin.cli.talking import say, show


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("fxrebasin-demo"),
    show_default=True,
    help="Folder for barrier.png and the two ONNX files.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@overwrite_option
@json_option
@debug_option
def demo(out: Path, seed: int, overwrite: bool, as_json: bool) -> None:
    """Train two pairs of small networks on digits, rebasin, export and verify them."""
    from fxrebasin.demo.results import results_table
    from fxrebasin.demo.run import run_demo

    result = run_demo(out, seed=seed, overwrite=overwrite)
    files = [*(outcome.onnx_file for outcome in result.outcomes), result.picture]
    document = {
        "outcomes": [outcome.document() for outcome in result.outcomes],
        "files": [str(file) for file in files],
        "seconds": result.seconds,
    }
    talk = Talk(as_json, dry_run=False)
    show(talk, results_table(result.outcomes), document)
    for file in files:
        say(talk, f"wrote {file}")
    say(talk, f"{result.seconds:.0f} s in all")
