"""Example inputs: those that were passed, checked, or ones inferred from the first layers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from fxrebasin.errors import InputError
from fxrebasin.running.dry_run import DryRun, dry_run
from fxrebasin.running.given import remade
from fxrebasin.running.messages import (
    attempt,
    describe,
    describe_call,
    first_lines,
    module_path,
    out_of_memory,
)
from fxrebasin.running.outputs import ReducingError, Wanted, reduced
from fxrebasin.running.preserve import preserve
from fxrebasin.wording import spoken

# Two, and not one: an axis of size 1 looks like a broadcast, `squeeze` drops it, and torch.export
# takes it for a constant. Two is the smallest batch without these problems.
BATCH = 2

# Where a graph keeps the inputs it was traced with, as (args, kwargs), in its `meta`.
EXAMPLE_KEY = "fxrebasin.example_inputs"

_SIZE_ATTRIBUTES = ("image_size", "img_size")
_LENGTHS = (16, 8, 4, 32, 64, 77, 128, 256, 512, 1024)
_IMAGE_SIZES = {
    1: (1024, 224, 128, 64, 32, 16384, 8),
    2: (224, 32, 28, 64, 96, 128, 256, 299, 384, 512, 16, 8),
    3: (32, 64, 112, 16, 8),
}
_VIDEO = (16, 224, 224)
_TRANSPOSED_SIZES = (4, 1, 8, 16, 32)

_Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FAMILIES: tuple[tuple[type[nn.Module], ...], ...] = (
    _CONVOLUTIONS,
    _TRANSPOSED,
    (nn.Embedding, nn.EmbeddingBag),
    (nn.MultiheadAttention,),
    (nn.RNNBase,),
    (nn.RNNCellBase,),
    (nn.Linear,),
)

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def normalise_inputs(
    model: nn.Module,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    check: bool = True,
) -> Call:
    """Positional and keyword inputs that `model` accepts, inferred when none are given.

    A tensor stands for one positional input. Inferred inputs have a batch of two, the device and
    dtype of the first floating-point parameter, and the same values every time; no global random
    state is read. The candidates come from the layers in the order in which they are registered,
    which approximates the order in which they run (an image for a convolution, token ids for an
    embedding, a sequence for an attention or recurrent layer, a vector for a linear layer), and
    the first that the model accepts is taken.

    Args:
        model: the model; it is run on meta tensors, and on numbers only if that fails.
        example_inputs: a tensor, a tuple or list of positional inputs, or None.
        example_kwargs: keyword inputs by name, or None.
        check: run the model on inputs that were given, to refuse those that it does not accept.

    Raises:
        InputError: the inputs are of the wrong kind, the model raises on them, or nothing that
            the layers suggest is accepted.

    Example:
        >>> args, kwargs = normalise_inputs(nn.Sequential(nn.Linear(5, 3), nn.ReLU()))
        >>> args[0].shape, kwargs
        (torch.Size([2, 5]), {})
    """
    if example_inputs is None and not example_kwargs:
        return _infer(model)
    args = _positional(example_inputs)
    kwargs = _keywords(example_kwargs)
    _refuse_empty(args, kwargs)
    if check:
        check_inputs(model, args, kwargs)
    return args, kwargs


def check_inputs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: Wanted = None
) -> DryRun | None:
    """Raise an `InputError` if the model does not run on these inputs.

    It is run on meta tensors first. What fails there may be fine with numbers, so the verdict is
    that of a real run (unless the model has no numbers itself).

    Returns:
        The dry run; None if the model runs only with numbers.

    Raises:
        InputError: with the model's message, where it was raised, and the shapes that were passed.
    """
    runs: list[DryRun] = []
    error = attempt(lambda: runs.append(dry_run(model, args, kwargs, wanted)))
    if error is not None and not any(parameter.is_meta for parameter in model.parameters()):
        error = attempt(lambda: _run(model, args, kwargs, wanted))
    if isinstance(error, ReducingError):
        raise error
    if error is not None:
        raise wrong_inputs(model, args, kwargs, error) from error
    return runs[0] if runs else None


def check_outputs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: Wanted
) -> None:
    """Raise an `InputError` if the model has no such outputs, as far as meta tensors show.

    Raises:
        InputError: it does not run, has no such outputs, or they cannot be looked into.
    """
    run = check_inputs(model, args, kwargs, wanted)
    if run is not None:
        run.outputs(wanted)


def _run(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: Wanted = None
) -> None:
    own_args, own_kwargs = remade((tuple(args), dict(kwargs)), lambda t: t.detach().clone())
    with preserve(model):
        reduced(model, model(*own_args, **own_kwargs), wanted)


def wrong_inputs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException
) -> InputError:
    """The error for inputs on which the model raised `error`."""
    path = module_path(model, error)
    where = f" in '{path}'" if path else ""
    if out_of_memory(error):
        return InputError(
            "there is not enough memory to run or analyse the model on the example inputs: "
            f"{describe_call(model, args, kwargs)} raised{where} {first_lines(error, 1)}\n"
            "Pass smaller inputs (a smaller batch, image or sequence), or use a machine with more "
            "memory."
        )
    return InputError(
        f"the model does not run on the example inputs: {describe_call(model, args, kwargs)} "
        f"raised{where} {first_lines(error)}\n"
        f"Pass inputs with which it runs, on its device and of its dtype. {_what_to_pass(model)}"
    )


def _positional(example_inputs: Any) -> tuple[Any, ...]:
    if example_inputs is None:
        return ()
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs)
    kind = type(example_inputs).__name__
    if isinstance(example_inputs, Mapping):
        raise InputError(
            f"example_inputs is a {kind}. Pass keyword inputs as example_kwargs, or "
            "(mapping,) if the model takes a mapping as its first positional input."
        )
    raise InputError(
        f"example_inputs is of type {kind}; expected a torch.Tensor or a tuple of positional "
        "inputs, for instance example_inputs=(torch.randn(2, 3, 224, 224),)."
    )


def _refuse_empty(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse tensors without elements: whatever is computed from them agrees with everything."""
    named = [(f"example_inputs[{index}]", value) for index, value in enumerate(args)]
    named += [(f"example_kwargs[{name!r}]", value) for name, value in kwargs.items()]
    for name, value in named:
        for path, leaf in tree_flatten_with_path(value)[0]:
            if isinstance(leaf, torch.Tensor) and 0 in leaf.shape:
                axis = list(leaf.shape).index(0)
                raise InputError(
                    f"{name}{keystr(path)} is {describe(leaf)}: axis {axis} has size 0, so that "
                    "nothing would be computed and nothing compared. Pass inputs in which every "
                    f"axis has at least one element; a batch of {BATCH} is best."
                )


def _keywords(example_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    if example_kwargs is None:
        return {}
    if not isinstance(example_kwargs, Mapping):
        raise InputError(
            f"example_kwargs is of type {type(example_kwargs).__name__}; expected a mapping from "
            "names of forward's parameters to inputs."
        )
    for name in example_kwargs:
        if not isinstance(name, str):
            raise InputError(f"example_kwargs has the key {name!r}; names must be strings.")
    return dict(example_kwargs)


# --- inference ---------------------------------------------------------------------------------


def _infer(model: nn.Module) -> Call:
    recorded = _recorded_call(model)
    if recorded is not None:
        return recorded
    calls = list(_calls(model))
    errors: list[Exception] = []
    for args, kwargs in calls:
        error = attempt(partial(dry_run, model, args, kwargs))
        if error is None:
            return args, kwargs
        errors.append(error)
    if not any(parameter.is_meta for parameter in model.parameters()):
        for index, (args, kwargs) in enumerate(calls):  # it may be the meta tensors that failed
            error = attempt(partial(_run, model, args, kwargs))
            if error is None:
                return args, kwargs
            errors[index] = error
    raise _cannot_infer(model, calls, errors)


def _recorded_call(model: nn.Module) -> Call | None:
    """The inputs that a graph was traced with, if it says so."""
    if not isinstance(model, fx.GraphModule):
        return None
    recorded = model.meta.get(EXAMPLE_KEY)
    return None if recorded is None else (tuple(recorded[0]), dict(recorded[1]))


def _cannot_infer(
    model: nn.Module, calls: Sequence[Call], errors: Sequence[Exception]
) -> InputError:
    tried = [
        f"  {describe_call(model, args, kwargs)}: {first_lines(error, 1)}"
        for (args, kwargs), error in zip(calls, errors, strict=True)
    ]
    shown = tried[:3] + ([f"  and {len(tried) - 3} more"] if len(tried) > 3 else [])
    reason = "these were tried:\n" + "\n".join(shown) if tried else "no layer suggests any."
    return InputError(
        f"no example inputs could be inferred for {type(model).__name__}: {reason}\n"
        f"{_what_to_pass(model)}"
    )


def _what_to_pass(model: nn.Module) -> str:
    """Show a call: the parameters of forward, and what the first layer takes."""
    names = ", ".join(_forward_parameters(model))
    first = next(_tensors(model), None)
    first = torch.zeros(2, 3, 224, 224, device="meta") if first is None else first
    example = _expression(first)
    python = f"pass for instance example_inputs=({example},)"
    option = f"give shapes, for instance --input-shape {_option(first)}"
    return f"Its forward takes ({names}); {spoken(python, option)}."


def _expression(tensor: torch.Tensor) -> str:
    sizes = ", ".join(map(str, tensor.shape))
    if tensor.is_floating_point():
        return f"torch.randn({sizes})"
    return f"torch.randint({int(tensor.max()) + 1 if not tensor.is_meta else 2}, ({sizes}))"


def _option(tensor: torch.Tensor) -> str:
    """The same on the command line."""
    dtype = "" if tensor.is_floating_point() else f":{str(tensor.dtype).removeprefix('torch.')}"
    return ",".join(map(str, tensor.shape)) + dtype


def _forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _calls(model: nn.Module) -> Iterator[Call]:
    """Calls to try, the most likely first."""
    main = getattr(model, "main_input_name", None)
    names = _forward_parameters(model)
    if not isinstance(main, str) or main not in names:
        for tensor in _tensors(model):
            yield (tensor,), {}
        return
    # Models that name their main input: others that they need besides have names as well
    fixed = {"use_cache": False} if "use_cache" in names else {}
    yield from (((), {main: tensor, **fixed}) for tensor in _tensors(model))
    ids = next((t for t in _tensors(model) if not t.is_floating_point()), None)
    image = next((t for t in _tensors(model) if t.ndim == 4), None)
    named = {"input_ids": ids, "decoder_input_ids": ids, "pixel_values": image}
    yield (), {n: t for n, t in named.items() if n in names and t is not None} | fixed
    dummies = getattr(model, "dummy_inputs", None)
    if isinstance(dummies, Mapping):
        device, _ = _device_and_dtype(model)
        yield (), {n: t.to(device) for n, t in dummies.items() if isinstance(t, torch.Tensor)}


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Tensors that the first layer of each family takes, families in order of registration."""
    maker = _Maker(*_device_and_dtype(model))
    seen: set[int] = set()
    for module in model.modules():
        family = next((i for i, kinds in enumerate(_FAMILIES) if isinstance(module, kinds)), None)
        if family is not None and family not in seen:
            seen.add(family)
            yield from maker.tensors(module, model)


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            small = parameter.dtype.itemsize < 2  # fp8 is for storage; nothing computes in it
            return parameter.device, torch.get_default_dtype() if small else parameter.dtype
    return torch.device("cpu"), torch.get_default_dtype()


@dataclass(frozen=True)
class _Maker:
    """Makes tensors with fixed values on a device."""

    device: torch.device
    dtype: torch.dtype

    def floats(self, *shape: int) -> torch.Tensor:
        """Standard normal values."""
        if self.device.type == "meta":
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    def ids(self, layer: nn.Embedding | nn.EmbeddingBag, length: int) -> torch.Tensor:
        """Uniform token ids, none of them the padding, which models mask."""
        generator = torch.Generator().manual_seed(0)
        choices = [i for i in range(layer.num_embeddings) if i != layer.padding_idx] or [0]
        picks = torch.randint(len(choices), (BATCH, length), generator=generator)
        return torch.tensor(choices)[picks].to(self.device)

    def tensors(self, layer: nn.Module, model: nn.Module) -> Iterator[torch.Tensor]:
        """What the layer takes, in several sizes."""
        if isinstance(layer, _CONVOLUTIONS):
            yield from self._images(layer, model)
        elif isinstance(layer, _TRANSPOSED):
            rank = layer.weight.ndim - 2
            for size in _TRANSPOSED_SIZES:
                yield self.floats(BATCH, layer.in_channels, *[size] * rank)
        elif isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            for length in _LENGTHS:
                yield self.ids(layer, length)
        elif isinstance(layer, nn.MultiheadAttention):
            yield self._sequence(layer.embed_dim, layer.batch_first)
        elif isinstance(layer, nn.RNNBase):
            yield self._sequence(layer.input_size, layer.batch_first)
        elif isinstance(layer, nn.RNNCellBase):
            yield self.floats(BATCH, layer.input_size)
        elif isinstance(layer, nn.Linear):
            yield self.floats(BATCH, layer.in_features)
            yield self._sequence(layer.in_features, batch_first=True)
            if layer.in_features % 3 == 0:  # it may embed the patches of a colour image
                for sizes in [*_stated_sizes(model, 2), *_usual_sizes(2)[:1]]:
                    yield self.floats(BATCH, 3, *sizes)

    def _sequence(self, size: int, batch_first: bool) -> torch.Tensor:
        length = _LENGTHS[0]
        return self.floats(*((BATCH, length) if batch_first else (length, BATCH)), size)

    def _images(self, layer: _Convolution, model: nn.Module) -> Iterator[torch.Tensor]:
        rank = layer.weight.ndim - 2
        for size in [*_stated_sizes(model, rank), *_usual_sizes(rank)]:
            yield self.floats(BATCH, layer.in_channels, *size)
            if rank == 1 and layer.in_channels == 1:  # a waveform, before the model adds channels
                yield self.floats(BATCH, *size)


def _usual_sizes(rank: int) -> list[tuple[int, ...]]:
    sizes = [(size,) * rank for size in _IMAGE_SIZES[rank]]
    return [_VIDEO, *sizes] if rank == 3 else sizes


def _stated_sizes(model: nn.Module, rank: int) -> Iterator[tuple[int, ...]]:
    """Sizes that the model or one of its parts states as an attribute."""
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for name in _SIZE_ATTRIBUTES:
                size = getattr(holder, name, None)
                if isinstance(size, int) and not isinstance(size, bool):
                    size = (size,) * rank
                if isinstance(size, tuple | list) and len(size) == rank:
                    yield tuple(map(int, size))
                    return
