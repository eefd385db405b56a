"""A symmetry as a table for people and as a document for programs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fxrebasin.symmetry import Symmetry


def symmetry_view(title: str, symmetry: Symmetry) -> RenderableType:
    """The classes as a table, then totals, then the pinned axes counted by reason."""
    table = Table(title=escape(title))
    table.add_column("class")
    table.add_column("units", justify="right")
    table.add_column("copies", justify="right")
    table.add_column("parameter axes", justify="right")
    table.add_column("within")
    for c in symmetry.classes:
        within = ", ".join(c.within) or "–"
        table.add_row(escape(c.name), str(c.size), str(c.count), str(len(c.axes)), escape(within))
    return Group(table, _totals(symmetry), _pins(symmetry))


def symmetry_document(symmetry: Symmetry) -> dict[str, Any]:
    """Everything that JSON can hold: classes, totals, pins with their reasons."""
    return {
        "log10_order": symmetry.log10_order(),
        "coverage": symmetry.coverage(),
        "unknown_operators": list(symmetry.unknown_operators),
        "classes": [
            {
                "name": c.name,
                "units": c.size,
                "copies": c.count,
                "within": list(c.within),
                "axes": [list(axis) for axis in c.axes],
            }
            for c in symmetry.classes
        ],
        "pins": [
            {"tensor": tensor, "axis": axis, "reason": str(reason)}
            for (tensor, axis), reason in symmetry.pins.items()
        ],
    }


def _totals(symmetry: Symmetry) -> Table:
    totals = Table.grid(padding=(0, 2))
    totals.add_row("classes", str(len(symmetry.classes)))
    totals.add_row("log10 of the order of the group", f"{symmetry.log10_order():.3f}")
    totals.add_row("coverage", f"{symmetry.coverage():.2%} of parameter elements")
    unknown = ", ".join(symmetry.unknown_operators) or "none"
    totals.add_row("operators without a rule", escape(unknown))
    return totals


def _pins(symmetry: Symmetry) -> Table:
    table = Table(title="pinned axes of parameters and buffers")
    table.add_column("axes", justify="right")
    table.add_column("reason")
    for reason, count in Counter(str(reason) for reason in symmetry.pins.values()).most_common():
        table.add_row(str(count), escape(reason))
    return table
