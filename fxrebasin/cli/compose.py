"""`fxrebasin compose`: one certificate out of several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from fxrebasin.alignment import Certificate


@click.command()
@click.argument("certificates", nargs=-1, required=True, type=EXISTING_FILE)
@output_option("--out", ".safetensors", required=True, help="File for the certificate.")
@click.option("--inverse", is_flag=True, help="Write the one that undoes them all.")
@overwrite_option
@json_option
@debug_option
def compose(
    certificates: tuple[Path, ...], out: Path, inverse: bool, overwrite: bool, as_json: bool
) -> None:
    """Make one certificate of several: what it does is what they do one after the other.

    From C to B, then from B to A: `compose c_to_b.safetensors b_to_a.safetensors --out
    c_to_a.safetensors`. With --inverse and a single certificate it is turned round. All are
    permutations, or all are alignments, which --symmetry signed and all make.
    """
    from fxrebasin.alignment import certificate_from
    from fxrebasin.cli.documents import command_document, permutation_document
    from fxrebasin.cli.work import refuse_outputs

    refuse_outputs([out], inputs=certificates, overwrite=overwrite)
    whole = _whole([certificate_from(path) for path in certificates])
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


def _whole(found: Sequence[Certificate]) -> Certificate:
    """What acts as all do, one after the other.

    Raises:
        InputError: some are permutations, and some are alignments.
    """
    from fxrebasin.errors import InputError
    from fxrebasin.permutation import Permutation

    permutations = [item for item in found if isinstance(item, Permutation)]
    alignments = [item for item in found if not isinstance(item, Permutation)]
    if permutations and alignments:
        raise InputError(
            "a permutation and an alignment, which --symmetry signed and all make, do not become "
            "one; align again with one --symmetry"
        )
    if permutations:
        return reduce(lambda done, following: following.compose(done), permutations)
    return reduce(lambda done, following: following.compose(done), alignments)
