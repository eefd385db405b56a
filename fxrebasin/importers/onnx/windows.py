"""Where windows of convolutions and pools lie: padding, strides, sizes of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.registry import UnsupportedError

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
"""By the number of axes that windows move along, less one."""


@dataclass(frozen=True)
class Windows:
    """Windows over the axes behind the first two.

    Args:
        sizes: of a window.
        strides: from one window to the next.
        dilations: from one of its elements to the next.
        before: padding in front of each axis.
        behind: padding at the end of each axis.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether there is as much padding in front as at the end."""
        return self.before == self.behind

    def reach(self, axis: int) -> int:
        """From the first element of a window to behind its last."""
        return self.dilations[axis] * (self.sizes[axis] - 1) + 1

    def count(self, axis: int, size: int, ceil: bool) -> int:
        """How many windows there are; none of them starts in the padding at the end."""
        before, behind, stride = self.before[axis], self.behind[axis], self.strides[axis]
        room = size + before + behind - self.reach(axis)
        count = (-(-room // stride) if ceil else room // stride) + 1
        return count - 1 if ceil and (count - 1) * stride >= size + before else count

    def padded(self, value: Tensor, filling: float = 0.0, extra: tuple[int, ...] = ()) -> Tensor:
        """The value with its padding, and with more at the end of each axis."""
        widths = zip(self.before, self.behind, extra or (0,) * len(self.sizes), strict=True)
        flat = [
            w for before, behind, more in reversed(list(widths)) for w in (before, behind + more)
        ]
        return F.pad(value, flat, value=filling) if any(flat) else value


def windows(
    value: Tensor,
    sizes: Sequence[int],
    strides: list[int] | None,
    dilations: list[int] | None,
    pads: list[int] | None,
    auto_pad: str,
) -> Windows:
    """The windows of a node.

    Args:
        value: `[batch, channels, *axes]` that they move along.
        sizes: of a window.
        strides: 1 when left out.
        dilations: 1 when left out.
        pads: in front of all axes, then at the end of all.
        auto_pad: how padding is found instead: as much as the result has the size of the input,
            divided by the stride.

    Raises:
        UnsupportedError: there are too many axes, or there is no such way of padding.
    """
    shape, sizes = tuple(value.shape[2:]), tuple(sizes)
    n = len(sizes)
    if not 1 <= n <= 3 or len(shape) != n:
        raise UnsupportedError(f"windows of {n} axes on inputs that have {len(shape)}")
    stride, dilation = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    if auto_pad in ("NOTSET", "VALID", ""):
        given = tuple(pads or ()) if auto_pad != "VALID" else ()
        given = given or (0,) * (2 * n)
        return Windows(sizes, stride, dilation, given[:n], given[n:])
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad is {auto_pad!r}")
    totals = [
        max((-(-size // step) - 1) * step + apart * (kernel - 1) + 1 - size, 0)
        for size, kernel, step, apart in zip(shape, sizes, stride, dilation, strict=True)
    ]
    first, last = halves(totals, upper=auto_pad == "SAME_UPPER")
    return Windows(sizes, stride, dilation, first, last)


def halves(totals: Sequence[int], *, upper: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Half of each number for the front, half for the end.

    Args:
        totals: one for each axis.
        upper: of odd numbers the larger half goes to the end.

    Example:
        >>> halves([3, 2], upper=True)
        ((1, 1), (2, 1))
    """
    less = tuple(total // 2 for total in totals)
    more = tuple(total - total // 2 for total in totals)
    return (less, more) if upper else (more, less)
