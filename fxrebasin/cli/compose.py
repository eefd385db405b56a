"""`fxrebasin compose`: one permutation out of several."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import click

from fxrebasin.cli.options import (
    EXISTING_FILE,
    Talk,
    debug_option,
    json_option,
    output_option,
    overwrite_option,
)
from fxrebasin.cli.talking import say, show


@click.command()
@click.argument("certificates", nargs=-1, required=True, type=EXISTING_FILE)
@output_option("--out", ".safetensors", required=True, help="File for the permutation.")
@click.option("--inverse", is_flag=True, help="Write the permutation that undoes them all.")
@overwrite_option
@json_option
@debug_option
def compose(
    certificates: tuple[Path, ...], out: Path, inverse: bool, overwrite: bool, as_json: bool
) -> None:
    """Make one certificate of several: what it does is what they do one after the other.

    From C to B, then from B to A: `compose c_to_b.safetensors b_to_a.safetensors --out
    c_to_a.safetensors`. With --inverse and a single certificate it is turned round.
    """
    from fxrebasin.cli.documents import command_document, permutation_document
    from fxrebasin.cli.work import refuse_outputs
    from fxrebasin.permutation import Permutation

    refuse_outputs([out], inputs=certificates, overwrite=overwrite)
    first, *others = (Permutation.load(path) for path in certificates)
    whole = reduce(lambda done, following: following.compose(done), others, first)
    whole = whole.inverse() if inverse else whole
    whole.save(out, overwrite=overwrite)
    figures = permutation_document(whole)
    facts = [
        ("first" if not index else "then", str(path)) for index, path in enumerate(certificates)
    ]
    facts += [("undone", "all of it")] if inverse else []
    moved = f"{figures['units_moved']} of {figures['units']} units, in {figures['classes']} classes"
    document = {
        **command_document("compose"),
        "certificates": [str(path) for path in certificates],
        "inverse": inverse,
        **figures,
        "files": [str(out)],
    }
    talk = Talk(as_json, dry_run=False)
    show(talk, [*facts, ("moves", moved)], document)
    say(talk, f"wrote {out}")
