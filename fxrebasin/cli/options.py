"""Options that several commands have, each with one name, one help text and one check.

Options that belong together arrive at a command as one argument, which a small class holds. Nothing
here needs torch, so that help and completion are quick.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import click

from fxrebasin.cli.streams import results_apart
from fxrebasin.picturing import PICTURES

DEBUG = "fxrebasin.debug"
ARGUMENTS = "fxrebasin.arguments"
"""Where a context keeps what was written."""
RESULTS = "fxrebasin.results"
"""Where a context keeps the stream of results, if all else that is printed goes elsewhere."""
RECIPE = "fxrebasin.recipe"
"""Where a context keeps the path of the recipe that the command is from, if it is from one."""

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
CHECKPOINT = click.Path(exists=True, path_type=Path)
"""A file of weights, or a folder."""

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Those of `fxrebasin.storage.containers.FILES`."""
_OTHER_SUFFIXES = (
    *(".onnx", ".json", ".yaml", ".yml", ".md", ".txt"),
    *PICTURES,
    *(".npz", ".npy", ".h5", ".gguf"),
)
DTYPES = ("float64", "float32", "bfloat16", "float16")
AS_THEY_ARE = "none"
PAIRWISE = ("weight", "activation", "frank_wolfe", "sinkhorn", "straight_through", "learned")
"""Methods that match one model with another; those of `fxrebasin.passes.match`."""
JOINT = ("merge_many", "cycle_consistent")
"""Methods that align several models at once; those of `fxrebasin.align_many`."""
ROUNDS = "rounds"
"""Method that aligns any number of checkpoints, a tensor at a time, and in several processes."""
COMBINATIONS = ("mean", "slerp", "task_arithmetic", "ties", "dare")
"""Formulas of `fxrebasin.merge.combinations`."""

Command: TypeAlias = Callable[..., None]
Decorator: TypeAlias = Callable[[Command], Command]


@dataclass(frozen=True)
class Inputs:
    """What is put into a model, and what of it counts."""

    input_shapes: tuple[str, ...]
    state_buffers: tuple[str, ...]
    outputs: tuple[str, ...] | None
    trust_remote_code: bool

    @property
    def choices(self) -> dict[str, Any]:
        """As the functions of the package take them."""
        return {"state_buffers": self.state_buffers, "outputs": self.outputs}


@dataclass(frozen=True)
class HowToRead:
    """How checkpoints are read; the options of `fxrebasin.storage.reading.Reading`."""

    key: str | None
    prefix: str | None
    ignore: tuple[str, ...]
    ignore_extra: bool


@dataclass(frozen=True)
class HowToMatch:
    """How units are matched."""

    method: str | None
    seed: int
    restarts: int | None
    data: str | None
    loss: str | None
    symmetry: str


@dataclass(frozen=True)
class Target:
    """What is written."""

    out: Path
    dtype: str | None
    overwrite: bool


@dataclass(frozen=True)
class Limits:
    """How much memory there is, and whether an earlier run is gone on with."""

    max_memory: int | None
    resume: bool


@dataclass(frozen=True)
class Talk:
    """What is printed."""

    as_json: bool
    dry_run: bool


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG] = ctx.meta.get(DEBUG, False) or value


def _keep_results_apart(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        ctx.meta[RESULTS] = ctx.find_root().with_resource(results_apart())
    return value


# Of the group and of every command, so that nobody has to remember where it belongs.
debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember_debug,
    help="Show the traceback of an error.",
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_keep_results_apart,
    help="Print one JSON document, and nothing else.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that exist.")


def split(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Texts with commas between them, given at once or one by one."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _outputs(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...] | None:
    return split(ctx, parameter, values) or None


def _grouped(name: str, kind: type[Any], *options: Callable[[Command], Command]) -> Decorator:
    """Options that arrive at the command as one argument."""

    def decorate(command: Command) -> Command:
        """Give a command these options."""

        @functools.wraps(command)
        def called(**values: Any) -> None:
            own = {item.name: values.pop(item.name) for item in fields(kind)}
            command(**values, **{name: kind(**own)})

        decorated: Command = called
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


input_options = _grouped(
    "inputs",
    Inputs,
    click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="Shape of an input, such as 1,3,224,224 or input_ids=2,16:int64; once per input, in "
        "order. Inferred from the first layers when left out.",
    ),
    click.option(
        "--state-buffers",
        multiple=True,
        callback=split,
        metavar="PATTERN[,PATTERN]",
        help="Names or patterns, such as '*.weight_u', of buffers to treat as state that may be "
        "permuted.",
    ),
    click.option(
        "--outputs",
        multiple=True,
        callback=_outputs,
        metavar="NAME[,NAME]",
        help="Names or patterns, as verify prints them, of the outputs that have to stay as they "
        "are; all but caches of keys and values when left out.",
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run code that the folder of a model brings along.",
    ),
    debug_option,
)

reading_options = _grouped(
    "reading",
    HowToRead,
    click.option(
        "--key",
        metavar="PATH",
        help="Which copy of the weights is taken in each checkpoint, such as state_dict_ema; keys "
        "of its dictionaries with dots between them. Found by rule, and told, when left out.",
    ),
    click.option(
        "--prefix",
        metavar="TEXT",
        help="What is taken off the names in each checkpoint; found, and told, when left out.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        callback=split,
        metavar="PATTERN[,PATTERN]",
        help="Tensors, such as 'fc.*', that may be missing or of another shape in a checkpoint; "
        "they are not compared.",
    ),
    click.option(
        "--ignore-extra",
        is_flag=True,
        help="Accept tensors in a checkpoint that the model does not have; they are kept.",
    ),
)


def _size(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """A number of bytes."""
    if text is None:
        return None
    from fxrebasin.errors import InputError
    from fxrebasin.streaming.memory import parse_bytes

    try:
        return parse_bytes(text)
    except InputError as error:
        raise click.BadParameter(str(error), ctx, parameter) from error


limit_options = _grouped(
    "limits",
    Limits,
    click.option(
        "--max-memory",
        callback=_size,
        metavar="SIZE",
        help="Do with this much memory, such as 3GiB: tensors are read and written one after the "
        "other. Done by itself where checkpoints are large for the memory that is free.",
    ),
    click.option(
        "--resume", is_flag=True, help="Go on with a run with --max-memory that was interrupted."
    ),
)

symmetry_option = click.option(
    "--symmetry",
    type=click.Choice(["permutation", "signed", "all"]),
    default="permutation",
    show_default=True,
    help="Which groups act on units: permutations; signs as well; or the largest group of each "
    "class, matrices among them.",
)


def matching_options(methods: tuple[str, ...], default: str) -> Decorator:
    """How units are matched, by one of some methods.

    Args:
        methods: names of those that the command has.
        default: in words, where the default depends.
    """
    return _grouped(
        "matching",
        HowToMatch,
        click.option(
            "--method",
            type=_Method(methods),
            help=f"How units are matched: {', '.join(methods)}. Default: {default}.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of what is random."),
        click.option(
            "--restarts",
            type=click.IntRange(min=0),
            metavar="N",
            help="Search from N random starts more (weight, frank_wolfe, cycle_consistent).",
        ),
        click.option(
            "--data",
            metavar="SOURCE",
            help="Data for methods that run the model: package.module:callable, which gives "
            "batches, or a folder of images or texts.",
        ),
        click.option(
            "--loss",
            metavar="MODULE:CALLABLE",
            help="A function of (outputs, targets) for methods that train, such as "
            "torch.nn.functional:cross_entropy.",
        ),
        symmetry_option,
    )


class _Method(click.ParamType[str]):
    """A method of matching; who names a formula for weights is told the option for it."""

    name = "method"

    def __init__(self, methods: tuple[str, ...]) -> None:
        self._methods = methods

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name, if there is such a method."""
        if value in self._methods:
            return value
        if value in COMBINATIONS:
            self.fail(
                f"{value!r} says how weights are combined, not how units are matched; "
                f"write --combine {value}",
                param,
                ctx,
            )
        import difflib

        close = difflib.get_close_matches(str(value), self._methods, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        self.fail(f"no method {value!r}; there are: {', '.join(self._methods)}.{hint}", param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What help shows in the place of the value."""
        return "METHOD"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[Any]:
        """The names that begin like this."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in self._methods if name.startswith(incomplete)]


class _Place(click.Path):
    """The path of what is written; an empty one would be the folder that this runs in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Args:
            value: as it was given.
            param: of which it is the value.
            ctx: of the command.
        """
        if not str(value):
            self.fail("it is empty; name a file, or a folder", param, ctx)
        return super().convert(value, param, ctx)


def target_options(what: str, also: tuple[str, ...] = ()) -> Decorator:
    """Where the result goes.

    Args:
        what: the result is, in words.
        also: suffixes of other files that the command writes in the place of weights.
    """
    shown = " ".join((*WEIGHTS_SUFFIXES, *also))

    def check(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
        """Refuse a suffix that belongs to something else, before any work."""
        if path is not None and path.suffix in _OTHER_SUFFIXES and path.suffix not in also:
            raise click.BadParameter(
                f"{path} has to end in one of {shown.replace(' ', ', ')}, or be the name of a "
                "folder",
                ctx,
                parameter,
            )
        return path

    return _grouped(
        "target",
        Target,
        click.option(
            "--out",
            type=_Place(path_type=Path),
            required=True,
            callback=check,
            metavar="PATH",
            help=f"{what}: a file ({shown}), or a folder like the one read.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            help="Convert what is written; as it came when left out.",
        ),
        overwrite_option,
    )


talk_options = _grouped(
    "talk",
    Talk,
    json_option,
    click.option(
        "--dry-run",
        is_flag=True,
        help="Say what would be matched, compared, ignored and written, and what memory that "
        "takes; no tensor is read, nothing is written.",
    ),
)


def output_option(
    name: str, suffixes: str | tuple[str, ...], *others: str, **attributes: Any
) -> Decorator:
    """An option for a file to write; another suffix is refused before any work.

    Args:
        name: of the option.
        suffixes: one, or several, that the file may have.
        *others: further names of it.
        **attributes: of the option.
    """
    allowed = (suffixes,) if isinstance(suffixes, str) else suffixes

    def check(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and path.suffix not in allowed:
            raise click.BadParameter(f"{path} has to end in {' or '.join(allowed)}", ctx, parameter)
        return path

    kind = click.Path(dir_okay=False, path_type=Path)
    shown = f"FILE{'|'.join(allowed)}"
    return click.option(name, *others, type=kind, callback=check, metavar=shown, **attributes)


evaluate_option = click.option(
    "--evaluate",
    metavar="MODULE:CALLABLE",
    help="A function from a model to its loss, or to its loss and accuracy.",
)
picture_option = output_option(
    "--picture", PICTURES, help="Draw the losses on the way between the models."
)
units_picture_option = output_option(
    "--picture", PICTURES, help="Draw how alike units of A and B are, before and after aligning."
)
either_picture_option = output_option(
    "--picture",
    PICTURES,
    help="Of two checkpoints: draw the losses on the way where --evaluate is given, else how alike "
    "their units are, before and after aligning.",
)
recalibrate_option = click.option(
    "--recalibrate",
    metavar="SOURCE",
    help="Take BatchNorm statistics anew on data: package.module:callable, which gives batches, "
    "or a folder of images.",
)
