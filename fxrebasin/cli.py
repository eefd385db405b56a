"""The command line: `fxrebasin demo | inspect | transform | verify | export`.

Exit codes: 0, all is well; 1, a check failed (two models are not equivalent, or an export cannot be
run); 2, the command or its input cannot be used. What a command needs is imported when it runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fxrebasin.errors import EquivalenceError, ExportError, FxRebasinError

if TYPE_CHECKING:
    from torch import nn

    from fxrebasin.models.input_shapes import ExampleInputs

CHECK_FAILED = 1
BAD_INPUT = 2

DEBUG = "fxrebasin.debug"

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Commands(click.Group):
    """Turns the package's errors into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors of the package end it without a traceback unless --debug is set."""
        try:
            return super().invoke(ctx)
        except FxRebasinError as error:
            if ctx.meta.get(DEBUG):
                raise
            click.echo(f"Error: {error}", err=True)
            failed = isinstance(error, EquivalenceError | ExportError)
            ctx.exit(CHECK_FAILED if failed else BAD_INPUT)


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG] = ctx.meta.get(DEBUG, False) or value


# Of the group and of every command, so that nobody has to remember where it belongs.
debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember_debug,
    help="Show the traceback of an error.",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fxrebasin", prog_name="fxrebasin")
@debug_option
def main() -> None:
    """Find the permutation symmetries of PyTorch models and align models with them.

    MODEL is torchvision:NAME, timm:NAME, package.module:callable, or the path of a Hugging Face
    config.json. Exit codes: 0 fine, 1 a check failed, 2 bad usage or input.
    """


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command about a model takes: MODEL, and what its inputs, state and outputs are."""
    shape = click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="Shape of an input, such as 1,3,224,224 or input_ids=2,16:int64; once per input, in "
        "order. Inferred from the first layers when left out.",
    )
    buffers = click.option(
        "--state-buffers",
        multiple=True,
        metavar="PATTERN",
        help="Name or pattern, such as '*.weight_u', of buffers to treat as state that may be "
        "permuted; once per pattern.",
    )
    outputs = click.option(
        "--outputs",
        multiple=True,
        callback=_split,
        metavar="NAME[,NAME]",
        help="Names or patterns, as verify prints them, of the outputs that have to stay as they "
        "are; all but caches of keys and values when left out.",
    )
    return click.argument("model")(shape(buffers(outputs(debug_option(command)))))


def _split(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Names with commas between them, or None for none."""
    return tuple(name.strip() for value in values for name in value.split(",")) or None


def _output(name: str, suffix: str, **attributes: Any) -> Callable[..., Any]:
    """An option for a file to write; another suffix is refused before any work."""

    def check(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and path.suffix != suffix:
            raise click.BadParameter(f"{path} has to end in {suffix}", ctx, parameter)
        return path

    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option(name, type=kind, callback=check, metavar=f"FILE{suffix}", **attributes)


def _overwrite_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--overwrite", is_flag=True, help="Replace files that exist.")(command)


@main.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("fxrebasin-demo"),
    show_default=True,
    help="Folder for barrier.png and the two ONNX files.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@_overwrite_option
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


@main.command()
@_model_options
@click.option(
    "--explain",
    type=(str, int),
    metavar="PARAM AXIS",
    help="Say what ties or pins one axis of a parameter or buffer, instead of the table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--weights", type=EXISTING_FILE, help="Weights of MODEL, whose constants count.")
@_output("--svg", ".svg", help="Also draw the model, coloured by permutation class.")
@_overwrite_option
def inspect(
    model: str,
    input_shapes: tuple[str, ...],
    state_buffers: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    explain: tuple[str, int] | None,
    as_json: bool,
    weights: Path | None,
    svg: Path | None,
    overwrite: bool,
) -> None:
    """Show the permutation classes of MODEL, its coverage, and what is pinned and why."""
    import fxrebasin
    from fxrebasin.show.drawing import dot_source, render_svg
    from fxrebasin.show.views import symmetry_document, symmetry_view
    from fxrebasin.storage.files import publish, refuse_existing
    from fxrebasin.terminal import output_console

    if svg is not None:
        refuse_existing([svg], overwrite=overwrite)
    module = _load_model(model, weights)
    inputs = _example_inputs(module, input_shapes)
    symmetry = fxrebasin.analyze(
        module, inputs.args, inputs.kwargs, state_buffers=state_buffers, outputs=outputs
    )
    if explain is not None:
        text = symmetry.explain(*explain)
        click.echo(json.dumps({"explanation": text}) if as_json else text)
    elif as_json:
        click.echo(json.dumps({"model": model, **symmetry_document(symmetry)}, indent=2))
    else:
        output_console().print(symmetry_view(model, symmetry))
    if svg is not None:
        publish(svg, render_svg(dot_source(symmetry, model)), overwrite=overwrite)
        click.echo(f"wrote {svg}", err=as_json)


@main.command()
@_model_options
@click.option("--model-b", type=EXISTING_FILE, required=True, help="Weights to permute.")
@click.option("--ref", type=EXISTING_FILE, required=True, help="Weights to align them with.")
@_output("--out", ".safetensors", required=True, help="Permuted weights.")
@_output("--onnx", ".onnx", help="Also export the permuted model.")
@_output("--certificate", ".safetensors", help="Also write the permutation.")
@click.option("--method", default="weight", show_default=True, help="How units are matched.")
@click.option("--seed", type=int, default=0, show_default=True)
@_overwrite_option
def transform(
    model: str,
    input_shapes: tuple[str, ...],
    state_buffers: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    model_b: Path,
    ref: Path,
    out: Path,
    onnx: Path | None,
    certificate: Path | None,
    method: str,
    seed: int,
    overwrite: bool,
) -> None:
    """Permute the weights of one checkpoint of MODEL towards another's, and prove the result."""
    import fxrebasin
    from fxrebasin.show.views import report_view
    from fxrebasin.storage.checkpoint import save_state_dict
    from fxrebasin.storage.files import refuse_existing
    from fxrebasin.terminal import output_console

    files = [path for path in (onnx, out, certificate) if path is not None]
    if out == certificate:
        raise click.UsageError("--out and --certificate name the same file")
    refuse_existing(files, overwrite=overwrite)
    module = _load_model(model, model_b)
    inputs = _example_inputs(module, input_shapes)
    result = fxrebasin.transform(
        module,
        ref=ref,
        example_inputs=inputs.args,
        example_kwargs=inputs.kwargs,
        method=method,
        seed=seed,
        state_buffers=state_buffers,
        outputs=outputs,
    )
    report = result.meta["fxrebasin"]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    # The file that can fail to be made comes first, so that a failure leaves none.
    if onnx is not None:
        checked = fxrebasin.export_onnx(
            result,
            onnx,
            inputs.args,
            inputs.kwargs,
            overwrite=overwrite,
            state_buffers=state_buffers,
            outputs=outputs,
        )
        click.echo(str(checked))
    save_state_dict(out, result.state_dict(), overwrite=overwrite)
    if certificate is not None:
        report.certificate.save(certificate, overwrite=overwrite)
    output_console().print(report_view(report))
    for path in files:
        click.echo(f"wrote {path}")


@main.command()
@_model_options
@click.argument("other", type=EXISTING_FILE)
@click.option("--weights", type=EXISTING_FILE, help="Weights of MODEL; random when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(
    ctx: click.Context,
    model: str,
    input_shapes: tuple[str, ...],
    state_buffers: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    other: Path,
    weights: Path | None,
    as_json: bool,
) -> None:
    """Compare MODEL with OTHER: an .onnx file of it, or another checkpoint for it."""
    import fxrebasin

    module = _load_model(model, weights)
    inputs = _example_inputs(module, input_shapes)
    candidate = other if other.suffix == ".onnx" else _load_model(model, other)
    report = fxrebasin.verify(
        module,
        candidate,
        inputs.args,
        inputs.kwargs,
        state_buffers=state_buffers,
        outputs=outputs,
    )
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else f"{report}\n{report.table()}")
    if not report.passed:
        ctx.exit(CHECK_FAILED)


@main.command()
@_model_options
@click.option("--weights", type=EXISTING_FILE, required=True, help="Weights of MODEL.")
@_output("--out", ".onnx", required=True, help="File to write.")
@_overwrite_option
def export(
    model: str,
    input_shapes: tuple[str, ...],
    state_buffers: tuple[str, ...],
    outputs: tuple[str, ...] | None,
    weights: Path,
    out: Path,
    overwrite: bool,
) -> None:
    """Export MODEL to ONNX; the file appears only after it was checked and run on onnxruntime."""
    import fxrebasin
    from fxrebasin.storage.files import refuse_existing

    refuse_existing([out], overwrite=overwrite)
    module = _load_model(model, weights)
    inputs = _example_inputs(module, input_shapes)
    out.parent.mkdir(parents=True, exist_ok=True)
    report = fxrebasin.export_onnx(
        module,
        out,
        inputs.args,
        inputs.kwargs,
        overwrite=overwrite,
        state_buffers=state_buffers,
        outputs=outputs,
    )
    click.echo(f"{report}\n{report.table()}\nwrote {out}")


def _example_inputs(module: nn.Module, input_shapes: tuple[str, ...]) -> ExampleInputs:
    from fxrebasin.models.input_shapes import draw_inputs, parse_shape

    return draw_inputs(module, [parse_shape(text) for text in input_shapes])


def _load_model(name: str, weights: Path | None) -> nn.Module:
    from fxrebasin.models.by_name import build_model

    module = build_model(name)
    if weights is not None:
        from fxrebasin.storage.checkpoint import load_weights

        load_weights(module, weights)
    return module
