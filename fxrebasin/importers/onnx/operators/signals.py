"""Windows, spectra, and boxes that overlap."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.dtypes import dtype_of
from fxrebasin.importers.onnx.registry import Site, number, operator, whole

_AXIS_IS_INPUT = 20


def _cosines(size: Tensor, periodic: int, dtype: int, *factors: float) -> Tensor:
    """A sum of cosines, each of a multiple of the frequency."""
    count = whole(size)
    steps = torch.arange(count, dtype=torch.float64) * 2 * math.pi
    turns = steps / (count if periodic else max(count - 1, 1))
    found = sum(factor * torch.cos(turns * at) for at, factor in enumerate(factors))
    return torch.as_tensor(found).to(dtype_of(dtype))


@operator("HannWindow", reads=(0,))
def hann_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """A window of one cosine."""
    return _cosines(size, periodic, output_datatype, 0.5, -0.5)


@operator("HammingWindow", reads=(0,))
def hamming_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """A window of one cosine that does not go down to zero."""
    return _cosines(size, periodic, output_datatype, 25 / 46, -21 / 46)


@operator("BlackmanWindow", reads=(0,))
def blackman_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """A window of two cosines."""
    return _cosines(size, periodic, output_datatype, 0.42, -0.5, 0.08)


@operator("DFT", reads=(1, 2))
def fourier(
    value: Tensor,
    length: Tensor | None = None,
    place: Tensor | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
    site: Site,
) -> Tensor:
    """Of complex numbers, whose parts are the last axis; which axis is an input since opset 20."""
    if site.opset >= _AXIS_IS_INPUT:
        axis = -2 if place is None else whole(place)
    axis %= value.ndim
    signal = torch.view_as_complex(value.contiguous()) if value.shape[-1] == 2 else value[..., 0]
    count = None if length is None else whole(length)
    if inverse and onesided:
        whole_signal: Tensor = torch.fft.irfft(signal, count, axis)
        return whole_signal.unsqueeze(-1)
    found = (torch.fft.ifft if inverse else torch.fft.fft)(signal, count, axis)
    if onesided:
        found = found.narrow(axis, 0, found.shape[axis] // 2 + 1)
    return torch.view_as_real(found)


@operator("STFT", reads=(1, 3))
def short_time_fourier(
    value: Tensor,
    step: Tensor,
    window: Tensor | None = None,
    length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """Of frames of a signal."""
    if value.ndim == 3:
        last = value.shape[-1] == 2
        value = torch.view_as_complex(value.contiguous()) if last else value[..., 0]
    size = whole(length) if length is not None else 0 if window is None else window.shape[0]
    frames = value.unfold(-1, size, whole(step))
    frames = frames if window is None else frames * window
    found = torch.fft.fft(frames)
    if onesided:
        found = found.narrow(-1, 0, size // 2 + 1)
    return torch.view_as_real(found)


@operator("MelWeightMatrix", reads=(0, 1, 2, 3, 4))
def mel_weights(
    bins: Tensor,
    length: Tensor,
    rate: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """Triangles over the bins of a spectrum, which lie evenly on the scale of pitches."""
    count, size = whole(bins), whole(length)
    ends = [2595 * math.log10(1 + float(number(item)) / 700) for item in (low, high)]
    step = (ends[1] - ends[0]) / (count + 2)
    pitches = torch.arange(count + 2, dtype=torch.float64) * step + ends[0]
    hertz = 700 * (10 ** (pitches / 2595) - 1)
    places = torch.floor((size + 1) * hertz / whole(rate)).long().tolist()
    found = torch.zeros(size // 2 + 1, count, dtype=torch.float64)
    for at in range(count):
        left, middle, right = places[at : at + 3]
        if middle == left:
            found[middle, at] = 1
        else:
            rising = range(left, middle + 1)
            found[rising, at] = torch.tensor(
                [(j - left) / (middle - left) for j in rising]
            ).double()
        if right != middle:
            falling = range(middle, right)
            values = [(right - j) / (right - middle) for j in falling]
            found[falling, at] = torch.tensor(values).double()
    return found.to(dtype_of(output_datatype))


@operator("NonMaxSuppression", reads=(0, 1, 2, 3, 4))
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """The best boxes of each class, without those that overlap better ones."""
    limit = 0 if most is None else whole(most)
    bound = 0.0 if overlap is None else float(number(overlap))
    found = []
    for batch in range(boxes.shape[0]):
        shares = _overlaps(boxes[batch], bool(center_point_box))
        for group in range(scores.shape[1]):
            values = scores[batch, group]
            order = torch.sort(values, descending=True, stable=True).indices
            kept: list[int] = []
            for item in order:
                at = int(item.item())
                if len(kept) == limit or (least is not None and not values[at] > number(least)):
                    break
                if not any(bool(shares[at, other] > bound) for other in kept):
                    kept.append(at)
            found += [[batch, group, at] for at in kept]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)


def _overlaps(boxes: Tensor, centred: bool) -> Tensor:
    """The common area of each two boxes as a share of what both cover."""
    if centred:
        middles, sizes = boxes[:, [1, 0]], boxes[:, [3, 2]]
        first, last = middles - sizes / 2, middles + sizes / 2
    else:
        one, other = boxes[:, :2], boxes[:, 2:]
        first, last = torch.minimum(one, other), torch.maximum(one, other)
    areas = (last - first).prod(1)
    reach = torch.minimum(last[:, None], last[None]) - torch.maximum(first[:, None], first[None])
    common = reach.clamp(min=0).prod(2)
    total = areas[:, None] + areas[None] - common
    exact = (common > 0) & (areas[:, None] > 0) & (areas[None] > 0)
    return torch.where(exact, common / F.relu(total).clamp(min=1e-30), torch.zeros_like(common))
