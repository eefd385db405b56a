"""How the time of an analysis grows with the size of what is analysed."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

import fxrebasin
from benchmarks.support.meta import parameters_on_meta

_ROUNDS = 3
_INK = "#4269d0"


@dataclass(frozen=True)
class Curve:
    """A series of models of one kind, each larger than the one before.

    Attributes:
        name: of what grows.
        subject: what is analysed, in words.
        sizes: of it, ascending.
        build: the model and its input, by size.
    """

    name: str
    subject: str
    sizes: tuple[int, ...]
    build: Callable[[int], tuple[nn.Module, Tensor]]


@dataclass(frozen=True)
class Point:
    """One analysis; the least CPU seconds of several."""

    curve: str
    subject: str
    size: int
    classes: int
    log10_order: float
    seconds: float


def _vit(
    side: int = 224, depth: int = 12, width: int = 192, batch: int = 2
) -> tuple[nn.Module, Tensor]:
    from torchvision.models import VisionTransformer

    with parameters_on_meta():
        model = VisionTransformer(side, 16, depth, width // 64, width, 4 * width).eval()
    return model, torch.empty(batch, 3, side, side, device="meta")


def _resnet(side: int) -> tuple[nn.Module, Tensor]:
    from torchvision.models import resnet50

    with parameters_on_meta():
        model = resnet50().eval()
    return model, torch.empty(2, 3, side, side, device="meta")


CURVES = (
    Curve(
        "depth",
        "ViT of width 192, by blocks",
        (12, 24, 48, 96),
        lambda depth: _vit(depth=depth),
    ),
    Curve(
        "width",
        "ViT of 12 blocks, by width",
        (192, 384, 768, 1536, 3072),
        lambda width: _vit(width=width),
    ),
    Curve(
        "tokens",
        "ViT of width 192, two images, by patches",
        (196, 784, 3136),
        lambda tokens: _vit(side=16 * math.isqrt(tokens)),
    ),
    Curve(
        "image size",
        "ResNet-50, two images, by pixels",
        tuple(side**2 for side in (64, 128, 256, 512, 1024)),
        lambda pixels: _resnet(math.isqrt(pixels)),
    ),
)


def measured(curve: Curve) -> Iterator[Point]:
    """The points of a curve, as they are measured; the machine is warmed up before.

    Args:
        curve: to measure.
    """
    fxrebasin.analyze(*curve.build(curve.sizes[0]))
    for size in curve.sizes:
        model, inputs = curve.build(size)
        seconds = math.inf
        for _ in range(_ROUNDS):
            start = time.process_time()
            symmetry = fxrebasin.analyze(model, inputs)
            seconds = min(seconds, time.process_time() - start)
        order = symmetry.log10_order()
        yield Point(curve.name, curve.subject, size, len(symmetry.classes), order, seconds)


def exponent(points: Sequence[Point]) -> float:
    """The slope of the straight line that fits logarithms best, by least squares.

    Args:
        points: of one curve.
    """
    sizes, seconds = (np.log([getattr(p, key) for p in points]) for key in ("size", "seconds"))
    return float(np.polyfit(sizes, seconds, 1)[0])


def markdown(points: Sequence[Point]) -> str:
    """A page with the table.

    Args:
        points: of all curves.
    """
    lines = [
        "# How the time to find the symmetry grows",
        "",
        f"Least CPU seconds of {_ROUNDS} on one thread, on the meta device, torch",
        f"{torch.__version__}; `python -m benchmarks.analysis --growth`. The exponent is the slope",
        "of the straight line that fits logarithms best: 1 is proportional (dotted), 0 not at all.",
        "",
        "![Seconds by size](growth.png)",
        "",
        "| what grows | exponent | sizes | seconds | classes |",
        "| --- | ---: | --- | --- | --- |",
    ]
    for own in by_curve(points):
        cells = [
            f"{own[0].curve}: {own[0].subject}",
            f"{exponent(own):.2f}",
            ", ".join(str(p.size) for p in own),
            ", ".join(f"{p.seconds:.2f}" for p in own),
            ", ".join(str(p.classes) for p in own),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_curve(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each curve, in their order.

    Args:
        points: of all curves.
    """
    names = dict.fromkeys(point.curve for point in points)
    return [[point for point in points if point.curve == name] for name in names]


def picture(points: Sequence[Point]) -> bytes:
    """All curves, on logarithmic axes, as PNG.

    Args:
        points: of all curves.
    """
    curves = by_curve(points)
    figure = Figure(figsize=(3.2 * len(curves), 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for number, own in enumerate(curves):
        axes = figure.add_subplot(1, len(curves), number + 1)
        sizes, seconds = [p.size for p in own], [p.seconds for p in own]
        axes.loglog(sizes, seconds, "o-", color=_INK)
        axes.loglog(sizes, [seconds[0] * size / sizes[0] for size in sizes], ":", color="0.6")
        axes.set_title(f"{own[0].curve}: exponent {exponent(own):.2f}", fontsize=10)
        axes.set_xlabel(own[0].subject, fontsize=8)
        axes.set_ylabel("CPU seconds" if not number else "", fontsize=8)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.tick_params(labelsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, metadata={"Software": None})
    return buffer.getvalue()
