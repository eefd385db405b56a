"""What commands do where MODEL is an ONNX file: it is model and weights at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fxrebasin.cli.options import HowToMatch, HowToRead, Inputs, Talk, Target
from fxrebasin.cli.talking import say, show

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
    certificate: Path | None,
    target: Target,
    matching: HowToMatch,
    inputs: Inputs,
    talk: Talk,
) -> None:
    """Re-base an ONNX file towards another one.

    Args:
        model: the file.
        ref: the other one.
        certificate: also written, if it is named.
        target: the file to write.
        matching: how units are matched.
        inputs: which outputs count.
        talk: what is printed.

    Raises:
        UsageError: the reference or the result is no ONNX file.
    """
    import fxrebasin
    from fxrebasin.cli.documents import command_document, matching_document
    from fxrebasin.cli.work import refuse_target
    from fxrebasin.progress import waiting
    from fxrebasin.show.views import report_facts

    for option, path in (("--ref", ref), ("--out", target.out)):
        if not is_onnx_file(path):
            raise click.UsageError(f"{option} has to be an .onnx file as MODEL is; found {path}")
    refuse_target(target, certificate, inputs=[model, ref])
    target.out.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {} if matching.restarts is None else {"restarts": matching.restarts}
    with waiting(f"re-basing {model}"):
        report = fxrebasin.onnx_transform(
            model,
            ref,
            target.out,
            method=matching.method or "weight",
            seed=matching.seed,
            overwrite=target.overwrite,
            outputs=inputs.outputs,
            **options,
        )
    files = [target.out]
    if certificate is not None:
        report.certificate.save(certificate, overwrite=target.overwrite)
        files.append(certificate)
    document = {"model": str(model), "ref": str(ref), **matching_document(report)}
    written = {"files": [str(file) for file in files]}
    show(talk, report_facts(report), {**command_document("transform"), **document, **written})
    for file in files:
        say(talk, f"wrote {file}")
