"""Draw what acts on the units of a class, kind by kind: `python -m benchmarks.symmetry_picture`."""

from __future__ import annotations

import io
from pathlib import Path

import click
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from fxrebasin.charts import Chart
from fxrebasin.kinds import GroupKind
from fxrebasin.layout import PermutationClass
from fxrebasin.storage.files import publish

PICTURE = Path("docs/symmetries.png")
_UNITS = 6
_DPI = 110
_SIZE = 0.6
_WHERE = {
    GroupKind.PERMUTATION: "GELU, SiLU, softmax",
    GroupKind.SIGNED: "tanh, sin",
    GroupKind.POSITIVE: "ReLU",
    GroupKind.MONOMIAL: "value of SwiGLU",
    GroupKind.COMPLEX_PAIRS: "q and k behind rotary",
    GroupKind.ORTHOGONAL_FIXING_ONES: "stream, LayerNorm",
    GroupKind.ORTHOGONAL: "stream, RMSNorm",
    GroupKind.GENERAL_LINEAR: "q and k, v and o of a head",
}


def example_of(kind: GroupKind) -> Tensor:
    """A matrix of a group, of shape (units, units), float64.

    Args:
        kind: of the group.
    """
    generator = torch.Generator().manual_seed(4)
    order = torch.eye(_UNITS, dtype=torch.float64)[torch.randperm(_UNITS, generator=generator)]
    signs = torch.ones(_UNITS, dtype=torch.float64)
    signs[::2] = -1
    if kind in (GroupKind.PERMUTATION, GroupKind.SIGNED):
        return order * (signs if kind is GroupKind.SIGNED else 1.0)
    partner = tuple(unit + 1 - 2 * (unit % 2) for unit in range(_UNITS))
    chart = Chart(PermutationClass("units", _UNITS), kind, partner)
    zeros = chart.zeros().double()
    [found] = chart.element(_SIZE * torch.randn(zeros.shape, generator=generator).double()).own
    if kind.has_matrices:
        return found
    return order * found * (signs if kind is GroupKind.MONOMIAL else 1.0)


def draw() -> bytes:
    """The picture, as PNG; pyplot's global state stays untouched."""
    figure = Figure(figsize=(11, 5.6), dpi=_DPI, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    for number, kind in enumerate(GroupKind):
        axes = figure.add_subplot(2, 4, number + 1)
        axes.imshow(example_of(kind).numpy(), cmap="RdBu", vmin=-1.5, vmax=1.5)
        axes.set_title(kind.value, fontsize=12)
        axes.set_xlabel(_WHERE[kind], fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


@click.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=PICTURE,
    show_default=True,
    help="The picture; one that exists is replaced.",
)
def main(out: Path) -> None:
    """Draw an element of each group that may act on the units of a class."""
    publish(out, draw(), overwrite=True)
    click.echo(f"see {out}")


if __name__ == "__main__":
    main()
