"""Example inputs from shapes written on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxrebasin.errors import InputError

_PATTERN = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:,\d+)*)(?::(?P<dtype>\w+))?", re.ASCII
)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class InputShape:
    """Shape and dtype of one input; `name` is None for a positional one."""

    name: str | None
    sizes: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class ExampleInputs:
    """What `fxrebasin.analyze` and the like take; both None to have inputs inferred."""

    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None


def parse_shape(text: str) -> InputShape:
    """Read `[NAME=]SIZE,SIZE,...[:DTYPE]`; the dtype is float32 when left out.

    Raises:
        InputError: the text has another form, or names no dtype of torch.

    Example:
        >>> parse_shape("input_ids=2,16:int64")
        InputShape(name='input_ids', sizes=(2, 16), dtype=torch.int64)
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InputError(
            f"{text!r} is not a shape; write sizes with commas, such as 1,3,224,224, "
            "perhaps with a dtype (2,16:int64) and a name (input_ids=2,16:int64)"
        )
    dtype = getattr(torch, match["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"{match['dtype']!r} in {text!r} is not a dtype of torch, such as float32")
    sizes = tuple(int(size) for size in match["sizes"].split(","))
    return InputShape(match["name"], sizes, dtype)


def draw_inputs(model: nn.Module, shapes: Sequence[InputShape]) -> ExampleInputs:
    """Tensors of these shapes, always the same ones: normal values, or ids that embeddings have.

    Args:
        model: its smallest `nn.Embedding` bounds integer inputs; without one they are 0 and 1.
        shapes: none to have the inputs inferred.

    Raises:
        InputError: a name comes twice.

    Example:
        >>> inputs = draw_inputs(nn.Embedding(5, 2), [parse_shape("2,3:int64")])
        >>> inputs.args[0].shape
        torch.Size([2, 3])
    """
    if not shapes:
        return ExampleInputs()
    names = [shape.name for shape in shapes if shape.name is not None]
    if len(set(names)) < len(names):
        raise InputError(f"an input is named twice: {', '.join(names)}")
    vocabularies = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    generator = torch.Generator().manual_seed(0)
    tensors = [_draw(shape, min(vocabularies, default=2), generator) for shape in shapes]
    pairs = list(zip(shapes, tensors, strict=True))
    return ExampleInputs(
        tuple(tensor for shape, tensor in pairs if shape.name is None),
        {shape.name: tensor for shape, tensor in pairs if shape.name is not None},
    )


def _draw(shape: InputShape, bound: int, generator: torch.Generator) -> Tensor:
    if shape.dtype == torch.bool:
        return torch.ones(shape.sizes, dtype=torch.bool)
    if shape.dtype in _INTEGERS:
        high = min(bound, torch.iinfo(shape.dtype).max)
        return torch.randint(high, shape.sizes, generator=generator, dtype=shape.dtype)
    return torch.randn(shape.sizes, generator=generator).to(shape.dtype)
