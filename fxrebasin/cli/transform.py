"""`fxrebasin transform`: one checkpoint towards another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fxrebasin.cli.onnx_files import (
    is_onnx_file,
    limits_given,
    reading_given,
    refuse_options,
    running_given,
    transform_file,
)
from fxrebasin.cli.options import (
    CHECKPOINT,
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
    output_option,
    reading_options,
    talk_options,
    target_options,
    units_picture_option,
)
from fxrebasin.cli.talking import say, show

if TYPE_CHECKING:
    from torch import Tensor

    from fxrebasin.alignment import Certificate
    from fxrebasin.cli.work import Bench
    from fxrebasin.reports.equivalence import EquivalenceReport
    from fxrebasin.storage.reading import Checkpoint


EXACT = "the permutation is exact: every tensor of the result is a permutation of B's, bit for bit"


@click.command()
@click.argument("model")
@click.option(
    "--model-b", type=CHECKPOINT, help="Weights to permute; those of MODEL if it is a folder."
)
@click.option("--ref", type=CHECKPOINT, required=True, help="Weights to align them with.")
@target_options("Permuted weights", also=(".onnx",))
@output_option("--onnx", ".onnx", help="Also export the permuted model.")
@output_option(
    "--certificate", ".safetensors", help="Also write the permutation, or the alignment."
)
@click.option(
    "--exact",
    is_flag=True,
    help="Check only that every tensor is that of --model-b, permuted, bit for bit; run nothing.",
)
@units_picture_option
@matching_options(PAIRWISE, "weight")
@reading_options
@input_options
@limit_options
@talk_options
def transform(
    model: str,
    model_b: Path | None,
    ref: Path,
    onnx: Path | None,
    certificate: Path | None,
    exact: bool,
    picture: Path | None,
    target: Target,
    matching: HowToMatch,
    reading: HowToRead,
    inputs: Inputs,
    limits: Limits,
    talk: Talk,
) -> None:
    """Permute the weights of one checkpoint of MODEL towards another's, and check the result.

    What is written is the file or folder of --model-b with its units in another order: names,
    dtypes and everything else in it stay as they are. MODEL and --ref may be ONNX files, and
    --out is one then.
    """
    from fxrebasin.cli.aligning import align_pair, default_method, for_copies
    from fxrebasin.cli.documents import (
        card,
        checkpoint_document,
        command_document,
        digest_facts,
        matching_document,
    )
    from fxrebasin.cli.large import Result, room_for
    from fxrebasin.cli.large_transform import transform_large
    from fxrebasin.cli.plans import show_plan
    from fxrebasin.cli.units import draw_units
    from fxrebasin.cli.work import (
        open_bench,
        open_emptied_bench,
        read_all,
        read_for,
        refuse_target,
        weights_or_folder,
        write_weights,
    )
    from fxrebasin.show.views import report_facts
    from fxrebasin.storage.files import together

    if is_onnx_file(model):
        given = {
            "--model-b": model_b,
            "--onnx": onnx,
            "--exact": exact or None,
            **running_given(matching, target, talk),
        }
        refuse_options({**given, **reading_given(reading, inputs), **limits_given(limits)})
        transform_file(Path(model), ref, (certificate, picture), target, matching, inputs, talk)
        return
    _check_choices(exact, matching, target)
    path = weights_or_folder(model, model_b, "--model-b")
    refuse_target(target, onnx, certificate, picture, inputs=read_for(model, path, ref))
    how = (matching, reading, inputs)
    needing = {"--onnx": onnx, "--picture": picture}
    room = room_for(model, [ref, path], how, limits, needing, [Result(target, 1, True)])
    if room is not None:
        transform_large(room, how, certificate, target, limits, talk)
        return
    if talk.dry_run:
        bench = open_bench(model, inputs, reading)
        show_plan(bench, [ref, path], inputs, talk, "transform", target.out)
        return
    bench, pair = read_all(open_emptied_bench(model, inputs, reading), (ref, path), inputs, reading)
    method = matching.method or default_method(2)
    report = align_pair(
        bench, pair, method, matching, inputs, run=not exact, keep=picture is not None
    )
    (reference, checkpoint), permutation = pair, report.certificate
    state, bits = _moved(checkpoint, permutation)
    report = replace(report, equivalence=bits) if exact else report
    files: list[Path] = []
    exported = None
    with together():
        if onnx is not None:
            exported = _exported(bench, checkpoint, permutation, onnx, target, inputs)
            files.append(onnx)
        notes = (
            *(*reference.notes, *checkpoint.notes, *checkpoint.left_out),
            *(() if exported is None else exported.notes),
        )
        facts = report_facts(report, notes, exported)
        facts += [] if bits is None else [("exact", EXACT)]
        text = card(
            target.out.stem,
            [
                *(("permuted", str(path)), ("towards", str(ref)), ("seed", str(matching.seed))),
                *facts,
                *digest_facts(path, permutation),
            ],
        )
        files += write_weights(target, checkpoint, state, text, for_copies(permutation))
        if certificate is not None:
            permutation.save(certificate, overwrite=target.overwrite)
            files.append(certificate)
        both = (reference, checkpoint)
        files += draw_units(picture, both, permutation, overwrite=target.overwrite)
    show(
        talk,
        facts,
        {
            **command_document("transform"),
            "model": model,
            "model_b": checkpoint_document(checkpoint),
            "ref": checkpoint_document(reference),
            **matching_document(report),
            "onnx": None if exported is None else exported.to_dict(),
            "files": [str(file) for file in files],
        },
    )
    for file in files:
        say(talk, f"wrote {file}")


def _moved(
    checkpoint: Checkpoint, permutation: Certificate
) -> tuple[dict[str, Tensor], EquivalenceReport | None]:
    """The result, and its comparison with B permuted; None for that where numbers are computed."""
    from fxrebasin.cli.aligning import moved
    from fxrebasin.permutation import Permutation
    from fxrebasin.proof import prove_bits
    from fxrebasin.running.freed import give_back_memory

    state = moved(checkpoint, permutation)
    give_back_memory()  # what tensors were gathered in, which lies between them
    if not isinstance(permutation, Permutation):
        return state, None
    return state, prove_bits(checkpoint.state, state, permutation)


def _check_choices(exact: bool, matching: HowToMatch, target: Target) -> None:
    from fxrebasin.kinds import Kinds

    if exact and matching.symmetry != Kinds.PERMUTATION.value:
        raise click.UsageError("--exact compares bits, and only permutations keep all of them")
    if is_onnx_file(target.out):
        raise click.UsageError("--out is an ONNX file only where MODEL is one; see --onnx")


def _exported(
    bench: Bench,
    checkpoint: Checkpoint,
    permutation: Certificate,
    onnx: Path,
    target: Target,
    inputs: Inputs,
) -> EquivalenceReport:
    """Write the permuted model as an ONNX file."""
    import fxrebasin
    from fxrebasin.alignment import applied

    module = bench.lay(checkpoint)
    module.load_state_dict(applied(permutation, module.state_dict()))
    onnx.parent.mkdir(parents=True, exist_ok=True)
    return fxrebasin.export_onnx(
        module,
        onnx,
        bench.example.args,
        bench.example.kwargs,
        overwrite=target.overwrite,
        **inputs.choices,
    )
