"""What commands about checkpoints begin with: a model, its inputs, and weights for it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from torch import nn

from fxrebasin.cli.options import RECIPE, HowToRead, Inputs, Target
from fxrebasin.errors import FxRebasinError, FxRebasinWarning, InputError
from fxrebasin.ignoring import fits
from fxrebasin.models.by_name import build_model
from fxrebasin.models.emptied import Emptied, filled, is_emptied
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.models.folders import folder_of
from fxrebasin.models.input_shapes import ExampleInputs, draw_inputs, parse_shape
from fxrebasin.models.untying import held_by_name
from fxrebasin.models.valueless import ValuelessError, build_without_values
from fxrebasin.progress import waiting
from fxrebasin.storage.checkpoint import read_checkpoint, write_checkpoint
from fxrebasin.storage.files import refuse_existing
from fxrebasin.storage.folder_files import refuse_inputs
from fxrebasin.storage.reading import Checkpoint, Move, Reading
from fxrebasin.storage.writing import refuse_full_folder

_NOTHING = HowToRead(key=None, prefix=None, ignore=(), ignore_extra=False)
_FOLDER = "hf:"


@dataclass(frozen=True)
class Bench:
    """A model on which checkpoints are laid one after the other.

    Args:
        name: of the model.
        module: its weights are those of the checkpoint that was laid on last.
        example: inputs that were given; nothing in it to have them inferred.
        reading: how checkpoints are read.
    """

    name: str
    module: nn.Module
    example: ExampleInputs
    reading: Reading

    def read(self, path: Path) -> Checkpoint:
        """The weights in a file or a folder, as they are stored.

        Args:
            path: of the file or folder.
        """
        with waiting(f"reading {path}"):
            found = read_checkpoint(path, self.module, self.reading)
        self._tell_rounding(path, found)
        return found

    def _tell_rounding(self, path: Path, checkpoint: Checkpoint) -> None:
        """Warn where the model works with fewer digits than a file has: checks are of these."""
        own = self.module.state_dict()
        for name, tensor in self.fitting(checkpoint).items():
            if tensor.dtype == torch.float64 and own[name].dtype == torch.float32:
                warnings.warn(
                    f"{path} holds float64, and the model float32: weights are checked as rounded "
                    "to that, and written so unless they are only permuted or averaged. Build the "
                    "model in float64 to keep all digits",
                    category=FxRebasinWarning,
                    stacklevel=2,
                )
                return

    def fitting(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """The weights of a checkpoint that the module takes, as they are stored.

        Args:
            checkpoint: that was read for the model.
        """
        own = self.module.state_dict()
        state = checkpoint.state.items()
        return {name: tensor for name, tensor in state if tensor.shape == own[name].shape}

    def lay(self, checkpoint: Checkpoint) -> nn.Module:
        """The module with these weights, in its own dtypes; what is ignored keeps others.

        Of an emptied module it is a copy with memory of its own.

        Args:
            checkpoint: that was read for the model.
        """
        fitting = self.fitting(checkpoint)
        if is_emptied(self.module):
            return filled(self.module, fitting)
        self.module.load_state_dict(fitting, strict=False)
        return self.module

    def lay_buffers(self, checkpoint: Checkpoint) -> nn.Module:
        """An emptied module with what of a checkpoint has values in it.

        Args:
            checkpoint: that was read for the model.
        """
        own = self.module.state_dict()
        fitting = self.fitting(checkpoint).items()
        valued = {name: tensor for name, tensor in fitting if not own[name].is_meta}
        self.module.load_state_dict(valued, strict=False)
        return self.module

    def shapes(self) -> tuple[str, ...]:
        """The inputs that commands run the model on, in words: given or inferred."""
        args, kwargs = normalise_inputs(
            self.module, self.example.args, self.example.kwargs, check=False
        )
        named = [("", value) for value in args] + [(f"{n}=", v) for n, v in kwargs.items()]
        return tuple(label + _shape(value) for label, value in named)


def open_bench(
    name: str, inputs: Inputs, how: HowToRead | None = None, *, values: bool = True
) -> Bench:
    """Build a model by its name.

    Args:
        name: of the model, or its folder.
        inputs: what is put into it.
        how: checkpoints are read.
        values: False for parameters on the meta device, which take no memory.
    """
    build = build_model if values else build_without_values
    with waiting(f"building {name}"):
        module = build(name, trust_remote_code=inputs.trust_remote_code)
    example = draw_inputs(module, [parse_shape(text) for text in inputs.input_shapes])
    how = how or _NOTHING
    reading = Reading(how.key, how.prefix, how.ignore_extra, how.ignore, inputs.trust_remote_code)
    return Bench(name, module, example, reading)


def open_emptied_bench(name: str, inputs: Inputs, how: HowToRead) -> Bench:
    """Build a model by its name whose weights need not be in memory beside those of checkpoints.

    It has them all the same where it is not known that it does without.

    Args:
        name: of the model, or its folder.
        inputs: what is put into it.
        how: checkpoints are read.
    """
    bench = open_bench(name, inputs, how)
    example = _example_of(bench)
    if example is None:
        return bench
    kept = [name for name in held_by_name(bench.module) if fits(name, how.ignore)]
    emptied = Emptied(bench.module, kept)
    bench = replace(bench, module=emptied.model, example=example)
    return bench if emptied.is_all_there_is() else open_bench(name, inputs, how)


def _example_of(bench: Bench) -> ExampleInputs | None:
    """The inputs, inferred if none were given; None where the model takes no such."""
    example = bench.example
    try:
        args, kwargs = normalise_inputs(bench.module, example.args, example.kwargs, check=False)
    except FxRebasinError:
        return None
    return ExampleInputs(args, dict(kwargs))


def read_all(
    bench: Bench, paths: Sequence[Path], inputs: Inputs, how: HowToRead
) -> tuple[Bench, list[Checkpoint]]:
    """Checkpoints, and the bench for them, which has values if they need those.

    Args:
        bench: emptied, or not.
        paths: of the checkpoints.
        inputs: what is put into the model.
        how: checkpoints are read.
    """
    try:
        return bench, [bench.read(path) for path in paths]
    except ValuelessError:
        bench = open_bench(bench.name, inputs, how)
        return bench, [bench.read(path) for path in paths]


def folder_of_weights(model: str) -> Path | None:
    """The folder that a model's name is, which holds its weights as well.

    Args:
        model: its name.
    """
    return folder_of(Path(model.removeprefix(_FOLDER)))


def weights_or_folder(model: str, weights: Path | None, option: str) -> Path:
    """The checkpoint that was given, or the model itself if it is a folder.

    Args:
        model: its name.
        weights: that were given.
        option: with which they are given.

    Raises:
        InputError: there are none.
    """
    found = weights or folder_of_weights(model)
    if found is None:
        raise InputError(
            f"{model} is no folder with weights in it: name a checkpoint with {option}"
        )
    return found


def split_models(arguments: Sequence[str]) -> tuple[str, tuple[Path, ...]]:
    """MODEL and the checkpoints of a command that takes `[MODEL] A B [C ...]`.

    Two folders are both: the first one is the model as well.

    Args:
        arguments: of the command.

    Raises:
        InputError: there are too few, or one of them does not exist.
    """
    model, *others = arguments
    if len(others) == 1 and folder_of_weights(model) is not None:
        others = [model.removeprefix(_FOLDER), *others]
    if ":" not in model and not Path(model).exists():
        raise InputError(f"there is no folder {model}, and it names no model otherwise")
    if len(others) < 2:
        raise InputError(
            "two or more checkpoints are needed behind MODEL, or two folders of Hugging Face "
            f"models; found {' '.join(arguments)}"
        )
    paths = tuple(Path(text) for text in others)
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise InputError(f"there is no checkpoint {', '.join(missing)}")
    return model, paths


def refuse_target(target: Target, *others: Path | None, inputs: Sequence[Path]) -> None:
    """Refuse results that exist, two in one place, or one in place of what is read.

    Args:
        target: of the weights.
        *others: of further files.
        inputs: what is read.

    Raises:
        InputError: one exists, or two are the same, or one is, holds or lies in an input, or in the
            folder of the weights.
    """
    files = [path for path in others if path is not None]
    if target.out.is_dir():
        refuse_inputs(target.out, inputs)
        refuse_full_folder(target.out, overwrite=target.overwrite)
        refuse_outputs(files, inputs=inputs, overwrite=target.overwrite)
    else:
        refuse_outputs([target.out, *files], inputs=inputs, overwrite=target.overwrite)
    for file in files:
        if target.out.resolve() in file.resolve().parents:
            raise InputError(
                f"{file} lies in {target.out}, which is written as a whole; choose another place"
            )


def refuse_targets(targets: Sequence[Target], *others: Path | None, inputs: Sequence[Path]) -> None:
    """Refuse several results, as `refuse_target` does one.

    Args:
        targets: of the weights, one beside the other.
        *others: of further files.
        inputs: what is read.

    Raises:
        InputError: see `refuse_target`; or one holds or lies in another.
    """
    for index, target in enumerate(targets):
        earlier = [other.out for other in targets[:index]]
        refuse_target(target, *others, inputs=[*inputs, *earlier])


def refuse_outputs(files: Sequence[Path], *, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse files that exist, two in one place, or one in place of what is read.

    Args:
        files: that are going to be written.
        inputs: what is read, beside the recipe if there is one.
        overwrite: whether files are replaced; inputs never are.

    Raises:
        InputError: one exists, or two are the same, or one is, holds or lies in an input.
    """
    places = [path.resolve() for path in files]
    twice = [str(path) for k, path in enumerate(files) if places[k] in places[:k]]
    if twice:
        raise InputError(f"{', '.join(twice)} is to be written twice; give each file its own name")
    recipe = click.get_current_context().meta.get(RECIPE)
    for file in files:
        refuse_inputs(file, inputs if recipe is None else [*inputs, recipe])
    refuse_existing(files, overwrite=overwrite)


def read_for(model: str, *paths: Path | None) -> list[Path]:
    """What a command reads: checkpoints, and the model if its name is that of a file.

    Args:
        model: its name.
        *paths: of checkpoints and the like.
    """
    own = Path(model.removeprefix(_FOLDER))
    return [path for path in (*paths, own if own.is_file() else None) if path is not None]


def write_weights(
    target: Target,
    like: Checkpoint,
    state: dict[str, torch.Tensor],
    card: str | None = None,
    others: Move | None = None,
) -> tuple[Path, ...]:
    """Write weights in the place of those of a checkpoint.

    Args:
        target: where, and in which dtype.
        like: gives everything but the weights.
        state: the weights.
        card: for the folder of a model.
        others: makes other copies in the file fit.
    """
    dtype = None if target.dtype is None else getattr(torch, target.dtype)
    with waiting(f"writing {target.out}"):
        return write_checkpoint(
            target.out,
            like,
            state,
            dtype=dtype,
            overwrite=target.overwrite,
            card=card,
            others=others,
        )


def _shape(value: object) -> str:
    """An input as it is given with --input-shape."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    dtype = "" if value.dtype == torch.float32 else f":{str(value.dtype).removeprefix('torch.')}"
    return ",".join(map(str, value.shape)) + dtype
