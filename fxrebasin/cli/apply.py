"""`fxrebasin apply`: a permutation that was kept, on a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from fxrebasin.cli.onnx_files import apply_file, is_onnx_file, reading_given, refuse_options
from fxrebasin.cli.options import (
    CHECKPOINT,
    EXISTING_FILE,
    HowToRead,
    Inputs,
    Talk,
    Target,
    input_options,
    json_option,
    reading_options,
    target_options,
)
from fxrebasin.cli.talking import say, show


@click.command()
@click.argument("model")
@click.argument("certificate", type=EXISTING_FILE)
@click.option(
    "--weights", type=CHECKPOINT, help="Weights to permute; those of MODEL if it is a folder."
)
@click.option("--inverse", is_flag=True, help="Undo the permutation.")
@target_options("Permuted weights", also=(".onnx",))
@reading_options
@input_options
@json_option
def apply(
    model: str,
    certificate: Path,
    weights: Path | None,
    inverse: bool,
    target: Target,
    reading: HowToRead,
    inputs: Inputs,
    as_json: bool,
) -> None:
    """Permute a checkpoint of MODEL by CERTIFICATE, which transform wrote, and check the result.

    With --inverse the permutation is undone: bit for bit what it was. MODEL may be an ONNX file,
    and --out is one then.
    """
    from fxrebasin.alignment import applied, certificate_from
    from fxrebasin.cli.aligning import for_copies, moved
    from fxrebasin.cli.documents import (
        card,
        checkpoint_document,
        command_document,
        digest_facts,
        permutation_document,
    )
    from fxrebasin.cli.holding import OTHER_STATE, made_from_these, proved_on
    from fxrebasin.cli.work import (
        open_bench,
        read_for,
        refuse_target,
        weights_or_folder,
        write_weights,
    )

    if is_onnx_file(model):
        given = {"--weights": weights, "--dtype": target.dtype, **reading_given(reading, inputs)}
        refuse_options(given)
        talk = Talk(as_json, dry_run=False)
        apply_file(Path(model), certificate, inverse, target, inputs, talk)
        return
    if is_onnx_file(target.out):
        raise click.UsageError("--out is an ONNX file only where MODEL is one")
    path = weights_or_folder(model, weights, "--weights")
    refuse_target(target, inputs=read_for(model, path, certificate))
    kept = certificate_from(certificate)
    permutation = kept.inverse() if inverse else kept
    bench = open_bench(model, inputs, reading)
    checkpoint = bench.read(path)
    bench.lay(checkpoint)
    permutation, equivalence = proved_on(bench, permutation, inputs)
    state = dict(bench.module.state_dict())
    same = made_from_these(kept, applied(permutation, state) if inverse else state)
    notes = [*checkpoint.notes, *checkpoint.left_out, *([OTHER_STATE] if same is False else [])]
    figures = permutation_document(permutation)
    facts = [
        ("permuted", str(path)),
        ("by", f"{certificate}{', undone' if inverse else ''}"),
        ("moved", f"{figures['units_moved']} of {figures['units']} units"),
        ("checked", "no unit moves" if equivalence is None else str(equivalence)),
        *(("note", note) for note in notes),
    ]
    text = card(target.out.stem, [*facts, *digest_facts(path, permutation)])
    files = write_weights(
        target, checkpoint, moved(checkpoint, permutation), text, for_copies(permutation)
    )
    document = {
        **command_document("apply"),
        "model": model,
        "weights": checkpoint_document(checkpoint),
        "certificate": str(certificate),
        "inverse": inverse,
        "made_from_these_weights": same,
        **figures,
        "equivalence": None if equivalence is None else equivalence.to_dict(),
        "notes": notes,
        "files": [str(file) for file in files],
    }
    talk = Talk(as_json, dry_run=False)
    show(talk, facts, document)
    for file in files:
        say(talk, f"wrote {file}")
