"""How large errors may be: in float64, and in other precisions by what these cost a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from fxrebasin.exporters.verify.references import References
from fxrebasin.exporters.verify.runs import Tensors, in_float64, tensors_of
from fxrebasin.running.apart import is_inexact, relative_error

# Permuted sums differ by about 1e-16 per term; four orders of magnitude below float32's noise.
FLOAT64_TOLERANCE = 1e-10

# onnxruntime's error in float32 and PyTorch's are of the same kind and independent, so their
# difference is a small multiple of either: 0.9 to 2.2 times the measured floor on 22 models of
# torchvision with random weights at 224 pixels. Ten leaves room for inputs that round well.
NOISE_MULTIPLE = 10.0

# The measured floor of a small model can be close to zero by luck. Below this many units in the
# last place of the largest value, a float32 result says nothing.
FLOOR_ULPS = 4.0

# A model that is chaotic in its own precision would otherwise agree with anything.
LARGEST_TOLERANCE = 0.05


@dataclass(frozen=True)
class Floors:
    """Noise floors by output, without unit.

    Attributes:
        by_name: the error of each in its own precision, relative to its largest number.
        measured: whether any run was made for them; the least ones that there are if not.
    """

    by_name: Mapping[str, float]
    measured: bool


def noise_floors(own: References, wides: Sequence[Tensors] | None) -> Iterator[Floors]:
    """Noise floors by output: of all sets, or of one more each time if runs are to be made.

    Args:
        own: what a model returns in its own precision.
        wides: what it returns in float64 on the same sets, if that is known.
    """
    floors: dict[str, float] = {}
    for native in own.runs:
        for name, tensor in native.items():
            floors[name] = max(floors.get(name, 0.0), _least_floor(tensor))
    if wides is not None:
        for native, wide in zip(own.runs, wides, strict=True):
            _raise_floors(floors, native, wide)
        yield Floors(floors, measured=True)
        return
    yield Floors(floors, measured=False)
    by_rows = sorted(zip(own.sets, own.runs, strict=True), key=lambda pair: pair[0].rows)
    with in_float64(own.subject, little_memory=True) as run:
        for one, native in by_rows:
            wide = tensors_of(own.subject, one, run(one))
            own.noise.know(one, wide)
            _raise_floors(floors, native, wide)
            yield Floors(floors, measured=True)


def _raise_floors(floors: dict[str, float], native: Tensors, wide: Tensors) -> None:
    for name, tensor in native.items():
        if name in wide and wide[name].shape == tensor.shape:
            floors[name] = max(floors[name], relative_error(wide[name], tensor))


def tolerance_of(floor: float) -> float:
    """The largest error that passes.

    Args:
        floor: the noise floor.
    """
    return min(NOISE_MULTIPLE * floor, LARGEST_TOLERANCE)


def _least_floor(tensor: torch.Tensor) -> float:
    if not is_inexact(tensor):
        return 0.0
    return max(FLOOR_ULPS * torch.finfo(tensor.dtype).eps, FLOAT64_TOLERANCE / NOISE_MULTIPLE)
