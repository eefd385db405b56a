"""What commands do where MODEL is an ONNX file: it is model and weights at once."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fxrebasin.cli.options import AS_THEY_ARE, HowToMatch, HowToRead, Inputs, Limits, Talk, Target
from fxrebasin.cli.talking import say, show
from fxrebasin.streaming.started import are_several

if TYPE_CHECKING:
    from fxrebasin.reports.rebasin import RebasinReport

_SUFFIX = ".onnx"


def is_onnx_file(name: str | Path) -> bool:
    """Whether a name is that of an ONNX file.

    Args:
        name: of a model, or a path.
    """
    return Path(name).suffix == _SUFFIX


def refuse_options(given: Mapping[str, object]) -> None:
    """Refuse options that mean nothing for an ONNX file.

    Args:
        given: options by what is written on the command line, with their values.

    Raises:
        UsageError: one of them was given.
    """
    useless = [name for name, value in given.items() if value]
    if useless:
        raise click.UsageError(
            f"{', '.join(useless)} cannot be used where MODEL is an ONNX file, which brings its "
            "own weights, sizes and types"
        )


def running_given(matching: HowToMatch, target: Target, talk: Talk) -> dict[str, object]:
    """Options of methods that run a module, and of what is written or planned of one.

    Args:
        matching: of a command.
        target: of a command.
        talk: of a command.
    """
    return {
        "--data": matching.data,
        "--loss": matching.loss,
        f"--symmetry {matching.symmetry}": matching.symmetry != "permutation",
        "--dtype": target.dtype,
        "--dry-run": talk.dry_run,
    }


def limits_given(limits: Limits) -> dict[str, object]:
    """Options about memory, and being one of several processes.

    Args:
        limits: of a command.
    """
    own = {"--max-memory": limits.max_memory, "--resume": limits.resume}
    return {**own, "torchrun": are_several()}


def reading_given(reading: HowToRead, inputs: Inputs) -> dict[str, object]:
    """Options that say how checkpoints are read and what a module is run on.

    Args:
        reading: of a command.
        inputs: of a command.
    """
    return {
        "--key": reading.key,
        "--prefix": reading.prefix,
        "--ignore": reading.ignore,
        "--ignore-extra": reading.ignore_extra,
        "--input-shape": inputs.input_shapes,
        "--state-buffers": inputs.state_buffers,
        "--trust-remote-code": inputs.trust_remote_code,
    }


def transform_file(
    model: Path,
    ref: Path,
    beside: tuple[Path | None, Path | None],
    target: Target,
    matching: HowToMatch,
    inputs: Inputs,
    talk: Talk,
) -> None:
    """Re-base an ONNX file towards another one.

    Args:
        model: the file.
        ref: the other one.
        beside: where a certificate, and a picture of the units, are written as well.
        target: the file to write.
        matching: how units are matched.
        inputs: which outputs count.
        talk: what is printed.

    Raises:
        UsageError: the reference or the result is no ONNX file.
    """
    from fxrebasin.cli.documents import command_document, matching_document
    from fxrebasin.cli.units import draw_units_of_files
    from fxrebasin.cli.work import refuse_target
    from fxrebasin.progress import waiting
    from fxrebasin.show.views import report_facts
    from fxrebasin.storage.files import together

    certificate, picture = beside
    for option, path in (("--ref", ref), ("--out", target.out)):
        if not is_onnx_file(path):
            raise click.UsageError(f"{option} has to be an .onnx file as MODEL is; found {path}")
    refuse_target(target, certificate, picture, inputs=[model, ref])
    files = [target.out]
    with together(), waiting(f"re-basing {model}"):
        report = rebased(model, ref, target.out, matching, inputs, overwrite=target.overwrite)
        if certificate is not None:
            report.certificate.save(certificate, overwrite=target.overwrite)
            files.append(certificate)
        files += draw_units_of_files(
            picture, ref, model, report.certificate, overwrite=target.overwrite
        )
    document = {"model": str(model), "ref": str(ref), **matching_document(report)}
    written = {"files": [str(file) for file in files]}
    show(talk, report_facts(report), {**command_document("transform"), **document, **written})
    for file in files:
        say(talk, f"wrote {file}")


def apply_file(
    model: Path,
    certificate: Path,
    inverse: bool,
    target: Target,
    inputs: Inputs,
    talk: Talk,
) -> None:
    """Permute an ONNX file by a certificate.

    Args:
        model: the file.
        certificate: of a permutation.
        inverse: whether that is undone.
        target: the file to write.
        inputs: which outputs count.
        talk: what is printed.

    Raises:
        UsageError: the result is no ONNX file.
    """
    import fxrebasin
    from fxrebasin.cli.documents import command_document, permutation_document
    from fxrebasin.cli.holding import OTHER_STATE
    from fxrebasin.cli.work import refuse_target
    from fxrebasin.importers.onnx.loading import read
    from fxrebasin.progress import waiting
    from fxrebasin.storage.digests import onnx_digest, same_state

    if not is_onnx_file(target.out):
        raise click.UsageError(f"--out has to be an .onnx file as MODEL is; found {target.out}")
    refuse_target(target, inputs=[model, certificate])
    kept = fxrebasin.Permutation.load(certificate)
    permutation = kept.inverse() if inverse else kept
    with waiting(f"permuting {model}"):
        proof = fxrebasin.onnx_apply(
            model, permutation, target.out, overwrite=target.overwrite, outputs=inputs.outputs
        )
        found = onnx_digest(read(target.out if inverse else model).weights)
    same = same_state(kept.found_with.states.get("model"), found)
    notes = [OTHER_STATE] if same is False else []
    figures = permutation_document(permutation)
    facts = [
        ("permuted", str(model)),
        ("by", f"{certificate}{', undone' if inverse else ''}"),
        ("moved", f"{figures['units_moved']} of {figures['units']} units"),
        ("checked", str(proof)),
        *(("note", note) for note in notes),
    ]
    document = {
        **command_document("apply"),
        "model": str(model),
        "certificate": str(certificate),
        "inverse": inverse,
        "made_from_these_weights": same,
        **figures,
        "equivalence": None if proof is None else proof.to_dict(),
        "notes": notes,
        "files": [str(target.out)],
    }
    show(talk, facts, document)
    say(talk, f"wrote {target.out}")


def interpolate_files(
    files: Sequence[Path],
    places: Mapping[float, Path],
    picture: Path | None,
    target: Target,
    matching: HowToMatch,
    inputs: Inputs,
    talk: Talk,
) -> None:
    """Re-base one ONNX file towards another, and write files on the line between the two.

    Args:
        files: both; the first one stays as it is.
        places: where the file at each position goes.
        picture: where a picture of the units goes, if it is asked for.
        target: whether files are replaced.
        matching: how units are matched, if they are.
        inputs: which outputs count.
        talk: what is printed.

    Raises:
        UsageError: what is written, or one of two files, is no ONNX file.
    """
    from fxrebasin.cli.documents import command_document, matching_document
    from fxrebasin.cli.units import check_units_picture, draw_units_of_files
    from fxrebasin.cli.work import refuse_outputs
    from fxrebasin.importers.onnx.loading import read
    from fxrebasin.importers.onnx.merging import merge_sources
    from fxrebasin.progress import waiting
    from fxrebasin.show.views import report_facts
    from fxrebasin.storage.files import together

    for path in (*files, *places.values()):
        if not is_onnx_file(path):
            raise click.UsageError(f"an .onnx file belongs to another .onnx file; found {path}")
    check_units_picture(picture, matching)
    drawn = [] if picture is None else [picture]
    refuse_outputs([*places.values(), *drawn], inputs=files, overwrite=target.overwrite)
    facts: list[tuple[str, str]] = []
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fxrebasin-") as folder:
        second, certificate = files[1], None
        if matching.method != AS_THEY_ARE:
            second = Path(folder) / "rebased.onnx"
            with waiting(f"re-basing {files[1]}"):
                report = rebased(files[1], files[0], second, matching, inputs, overwrite=False)
            facts, document = report_facts(report), matching_document(report)
            certificate = report.certificate
        with together():
            sources = [read(files[0]), read(second, str(files[1]))]
            for t, path in places.items():
                merge_sources(sources, path, (1 - t, t), overwrite=target.overwrite)
            if certificate is not None:
                draw_units_of_files(
                    picture, files[0], files[1], certificate, overwrite=target.overwrite
                )
    paths = [*places.values(), *drawn]
    written = {"positions": list(places), "files": [str(path) for path in paths]}
    show(talk, facts, {**command_document("interpolate"), **document, **written})
    for t, path in places.items():
        say(talk, f"wrote {path} (t = {t:g})")
    for path in drawn:
        say(talk, f"wrote {path}")


def rebased(
    model: Path, ref: Path, out: Path, matching: HowToMatch, inputs: Inputs, *, overwrite: bool
) -> RebasinReport:
    """Re-base a file towards another one.

    Args:
        model: the file.
        ref: the other one.
        out: where the result goes.
        matching: how units are matched.
        inputs: which outputs count.
        overwrite: whether a file that exists is replaced.
    """
    import fxrebasin

    options: dict[str, Any] = {} if matching.restarts is None else {"restarts": matching.restarts}
    return fxrebasin.onnx_transform(
        model,
        ref,
        out,
        method=matching.method or "weight",
        seed=matching.seed,
        overwrite=overwrite,
        outputs=inputs.outputs,
        **options,
    )
