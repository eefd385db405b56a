"""A picture that Graphviz laid out, drawn again as PNG or PDF, which its library cannot write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from fxrebasin.picturing import rendered

if TYPE_CHECKING:
    from matplotlib.patches import Patch
    from matplotlib.text import Text

_SVG = "{http://www.w3.org/2000/svg}"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_POINTS = 72  # to the inch
_DPI = 120
_FONT_SCALE = 0.84
"""matplotlib's own font, which is everywhere, is wider than the one of the layout."""
_ANCHORS: dict[str, Literal["left", "center", "right"]] = {
    "start": "left",
    "middle": "center",
    "end": "right",
}
_DASHED = (0, (1, 2))


def redrawn(svg: bytes, kind: str) -> bytes:
    """The picture as another file, the same bytes every time.

    Args:
        svg: as Graphviz writes it: polygons, ellipses, curves and text, in points.
        kind: "png" or "pdf".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    root = ElementTree.fromstring(svg)
    left, top, wide, high = (float(n) for n in _NUMBER.findall(root.attrib["viewBox"]))
    figure = Figure(figsize=(wide / _POINTS, high / _POINTS), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    graph = root[0]  # all of it; its transform ends with "translate(x y)"
    x, y = (float(n) for n in _NUMBER.findall(graph.attrib["transform"])[-2:])
    axes.set_xlim(left - x, left - x + wide)
    axes.set_ylim(top - y + high, top - y)
    for item in _drawn(graph):
        axes.add_artist(item)
    return rendered(figure, kind)


def _drawn(graph: ElementTree.Element) -> Iterator[Patch | Text]:
    """What is on the picture, from the bottom up."""
    from matplotlib.patches import Ellipse, PathPatch, Polygon
    from matplotlib.path import Path

    for number, item in enumerate(graph.iter()):
        style = {**_style(item), "zorder": number}
        numbers = [float(n) for n in _NUMBER.findall(item.get("points") or item.get("d") or "")]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        if item.tag == f"{_SVG}polygon":
            yield Polygon(points, closed=True, **style)
        elif item.tag == f"{_SVG}polyline":
            yield PathPatch(Path(points), **style)
        elif item.tag == f"{_SVG}path":  # one curve after the other
            codes = [Path.MOVETO, *[Path.CURVE4] * (len(points) - 1)]
            yield PathPatch(Path(points, codes), **style)
        elif item.tag == f"{_SVG}ellipse":
            x, y, a, b = (float(item.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
            yield Ellipse((x, y), 2 * a, 2 * b, **style)
        elif item.tag == f"{_SVG}text":
            yield _text(item, number)


def _text(item: ElementTree.Element, number: int) -> Text:
    from matplotlib.text import Text

    return Text(
        float(item.attrib["x"]),
        float(item.attrib["y"]),
        item.text or "",
        parse_math=False,
        color=item.get("fill", "black"),
        fontsize=_FONT_SCALE * float(item.get("font-size", "14")),
        horizontalalignment=_ANCHORS[item.get("text-anchor", "start")],
        verticalalignment="baseline",
        zorder=number,
    )


def _style(item: ElementTree.Element) -> dict[str, Any]:
    """How a shape looks, in the words of matplotlib."""

    def colour(name: str, default: str) -> object:
        value = item.get(name, default)
        if value in ("none", "transparent"):
            return "none"
        return (value, float(item.get(f"{name}-opacity", "1")))

    return {
        "facecolor": colour("fill", "black"),
        "edgecolor": colour("stroke", "none"),
        "linewidth": float(item.get("stroke-width", "1")),
        "linestyle": _DASHED if "stroke-dasharray" in item.attrib else "-",
        "capstyle": "butt",
    }
