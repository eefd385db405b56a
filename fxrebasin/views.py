"""What commands print: a symmetry and a report for people, a symmetry for programs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fxrebasin.report import RebasinReport
    from fxrebasin.symmetry import Symmetry


def symmetry_view(title: str, symmetry: Symmetry) -> RenderableType:
    """The classes as a table, then totals, then the pinned axes counted by reason."""
    table = Table(title=escape(title))
    table.add_column("class", overflow="fold")
    table.add_column("units", justify="right")
    table.add_column("copies", justify="right")
    table.add_column("parameter axes", justify="right")
    table.add_column("within", overflow="fold")
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
            {"tensor": tensor, "axis": axis, "reason": reason}
            for (tensor, axis), reason in symmetry.pins.items()
        ],
    }


def report_view(report: RebasinReport) -> Table:
    """What `transform` did, one figure per line."""
    rows = Table.grid(padding=(0, 2))
    rows.add_row("method", f"{report.method}, {report.sweeps} sweeps")
    rows.add_row("distance", f"{report.distance_before:.6g} → {report.distance_after:.6g}")
    rows.add_row("objective", f"{report.objective_before:.6g} → {report.objective_after:.6g}")
    rows.add_row("equivalence", escape(str(report.equivalence)))
    rows.add_row("seconds", ", ".join(f"{k} {v:.2f}" for k, v in report.seconds.items()))
    for operator in report.unknown_operators:
        rows.add_row("no rule for", escape(operator))
    for note in report.notes:
        rows.add_row("note", escape(note))
    return rows


def _totals(symmetry: Symmetry) -> Table:
    totals = Table.grid(padding=(0, 2))
    totals.add_row("classes", str(len(symmetry.classes)))
    totals.add_row("log10 of the order of the group", f"{symmetry.log10_order():.3f}")
    totals.add_row("coverage", f"{symmetry.coverage():.2%} of parameter elements")
    unknown = ", ".join(symmetry.unknown_operators) or "none"
    totals.add_row("operators without a rule", escape(unknown))
    return totals


def _pins(symmetry: Symmetry) -> Table:
    """Axes by the kind of their reason, which is what stands before the colon."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for (tensor, axis), reason in symmetry.pins.items():
        kinds[reason.partition(": ")[0]].append(f"{tensor}[{axis}]")
    table = Table(title="pinned axes of parameters and buffers")
    table.add_column("axes", justify="right")
    table.add_column("reason", overflow="fold")
    table.add_column("for instance", overflow="fold")
    for kind, axes in sorted(kinds.items(), key=lambda item: -len(item[1])):
        table.add_row(str(len(axes)), escape(kind), escape(axes[0]))
    return table
