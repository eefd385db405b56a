"""The picture of a symmetry as one file for a browser: zoom, search, axes and pins on hovering."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from string import Template
from typing import Any

from fxrebasin.flow import Step, StepKind
from fxrebasin.show.drawing import class_colors, dot_source, render_svg
from fxrebasin.show.folding import Sketch, sketch
from fxrebasin.show.numbering import common_name, folded_classes, numbers_of
from fxrebasin.symmetry import Symmetry

_DECLARATIONS = re.compile(r"^.*?(?=<svg)", flags=re.DOTALL)


class _Page(Template):
    """Scripts and styles are full of dollars."""

    delimiter = "@@"


def html_page(symmetry: Symmetry, title: str) -> str:
    """The picture and all that is known of its boxes; nothing else is loaded.

    Args:
        symmetry: of a model.
        title: above the picture.

    Raises:
        InputError: there is no Graphviz, or it cannot draw this.

    Example:
        >>> import torch, fxrebasin
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3))
        >>> html_page(fxrebasin.analyze(net), "net").splitlines()[0]
        '<!doctype html>'
    """
    svg = _DECLARATIONS.sub("", render_svg(dot_source(symmetry, title)).decode())
    facts = json.dumps(_facts(symmetry), ensure_ascii=False)
    template = _Page(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title), svg=svg, facts=facts.replace("<", "\\u003c")
    )


def _facts(symmetry: Symmetry) -> dict[str, Any]:
    """What the page shows beside the picture."""
    drawn, numbers = sketch(symmetry), numbers_of(symmetry)
    steps = {f"s{index}": step for index, step in drawn.steps.items()}
    return {
        "classes": _classes(symmetry, numbers),
        "steps": {name: _step(symmetry, drawn, step, numbers) for name, step in steps.items()},
        "states": {
            state: {"shape": shape, "axes": _axes(symmetry, state, numbers)}
            for state, shape in symmetry.shapes.items()
        },
    }


def _classes(symmetry: Symmetry, numbers: dict[str, str]) -> dict[str, Any]:
    colors = class_colors(symmetry)
    found = {}
    for c, names in folded_classes(symmetry):
        within = " and ".join(numbers[name] for name in c.within)
        parts = [f"{c.count} copies, inside {within}" if within else "", _times(names)]
        tied = symmetry.tying_operators(c)
        found[numbers[c.name]] = {
            "name": common_name(names),
            "size": c.size,
            "color": colors.get(c.name, ""),
            "text": ", ".join(part for part in parts if part),
            "tied": ", ".join(f"{operator} ×{count}" for operator, count in tied.items()),
        }
    return found


def _times(names: tuple[str, ...]) -> str:
    return f"in each of {len(names)} layers" if len(names) > 1 else ""


def _step(symmetry: Symmetry, drawn: Sketch, step: Step, numbers: dict[str, str]) -> dict[str, Any]:
    states = [state for part in step.parts for state in part.states]
    on_state = {c.name for c in symmetry.classes for state, _ in c.axes if state in set(states)}
    moved = {*step.inner, *step.classes, *on_state}
    names = [part.path or "model" for part in step.parts]
    return {
        "name": ", ".join(dict.fromkeys(names)) if step.kind is StepKind.STEP else step.kind.value,
        "operators": sorted({operator for part in step.parts for operator in part.operators}),
        "states": states,
        "everywhere": [other for state in states for other in _repeated(drawn, state)],
        "numbers": sorted({numbers[name] for name in moved}),
    }


def _repeated(drawn: Sketch, state: str) -> list[str]:
    """A tensor and those in its place in the blocks that its block stands for."""
    found = [state]
    for first, paths in drawn.repeats.items():
        for name in [name for name in found if name.startswith(f"{first}.")]:
            found += [path + name[len(first) :] for path in paths[1:]]
    return found


def _axes(symmetry: Symmetry, state: str, numbers: dict[str, str]) -> list[dict[str, Any]]:
    """By axis, the numbers of its classes, or why it stays where it is."""
    return [
        {"pinned": str(symmetry.pins[state, axis])}
        if (state, axis) in symmetry.pins
        else {"classes": [numbers[c.name] for c in symmetry.classes if (state, axis) in c.axes]}
        for axis in range(len(symmetry.shapes[state]))
    ]
