"""`fxrebasin demo`: the demonstration on small networks."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.options import debug_option, overwrite_option


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
@debug_option
def demo(out: Path, seed: int, overwrite: bool) -> None:
    """Train two pairs of small networks on digits, rebasin, export and verify them."""
    from fxrebasin.demo.results import results_table
    from fxrebasin.demo.run import run_demo
    from fxrebasin.terminal import output_console

    result = run_demo(out, seed=seed, overwrite=overwrite)
    output_console().print(results_table(result.outcomes))
    for path in (*(outcome.onnx_file for outcome in result.outcomes), result.picture):
        click.echo(f"wrote {path}")
    click.echo(f"{result.seconds:.0f} s in all")
