"""What commands print: a symmetry and a report for people, a symmetry for programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fxrebasin.show.facts import counted

_LISTED = 3

if TYPE_CHECKING:
    from fxrebasin.reports.equivalence import EquivalenceReport
    from fxrebasin.reports.rebasin import RebasinReport
    from fxrebasin.symmetry import Symmetry


def symmetry_view(title: str, symmetry: Symmetry, inputs: Sequence[str] = ()) -> RenderableType:
    """The classes, what they move and what ties it; then totals; then pinned axes by reason."""
    table = Table(title=escape(title))
    table.add_column("#", justify="right")
    table.add_column("class", overflow="fold")
    table.add_column("units", justify="right")
    table.add_column("copies", overflow="fold")
    table.add_column("parameters and buffers", overflow="fold")
    table.add_column("tied by", overflow="fold")
    numbers = {c.name: str(number) for number, c in enumerate(symmetry.classes, start=1)}
    for c in symmetry.classes:
        within = ", ".join(f"#{numbers[name]}" for name in c.within)
        copies = f"{c.count}, inside {within}" if within else str(c.count)
        axes = _listed([f"{name}[{axis}]" for name, axis in c.axes])
        tied = ", ".join(f"{_short(o)} ×{n}" for o, n in symmetry.tying_operators(c).items())
        cells = (c.name, str(c.size), copies, axes, tied or "–")
        table.add_row(numbers[c.name], *map(escape, cells))
    notes = [escape(f"note: {note}") for note in symmetry.notes]
    return Group(table, _totals(symmetry), *notes, _pins(symmetry))


def _listed(names: list[str]) -> str:
    """The first names, with the modules that they share named once.

    Example:
        >>> _listed(["block.norm.weight[0]", "block.norm.bias[0]", "block.head.weight[1]"])
        'block.{norm.weight[0], norm.bias[0], head.weight[1]}'
    """
    shown = names[:_LISTED]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    shared = shown[0].rpartition(".")[0]
    while shared and not all(name.startswith(f"{shared}.") for name in shown):
        shared = shared.rpartition(".")[0]
    if not shared or len(shown) == 1:
        return ", ".join(shown) + more
    return f"{shared}.{{{', '.join(name[len(shared) + 1 :] for name in shown)}}}{more}"


def _short(operator: str) -> str:
    """The name of an operator without its library and overload."""
    return operator.removeprefix("aten.").partition(".")[0]


def symmetry_document(symmetry: Symmetry) -> dict[str, Any]:
    """Everything that JSON can hold: classes, totals, pins with their reasons."""
    return {
        "log10_order": symmetry.log10_order(),
        "coverage": symmetry.coverage(),
        "unknown_operators": list(symmetry.unknown_operators),
        "notes": list(symmetry.notes),
        "classes": [
            {
                "name": c.name,
                "units": c.size,
                "copies": c.count,
                "within": list(c.within),
                "axes": [list(axis) for axis in c.axes],
                "tied_by": symmetry.tying_operators(c),
            }
            for c in symmetry.classes
        ],
        "pins": [
            {"tensor": tensor, "axis": axis, "reason": reason}
            for (tensor, axis), reason in symmetry.pins.items()
        ],
    }


def report_facts(
    report: RebasinReport,
    notes: Sequence[str] = (),
    exported: EquivalenceReport | None = None,
) -> list[tuple[str, str]]:
    """What matching and permuting did, one fact after the other.

    Args:
        report: of the match.
        notes: of the checkpoints that were read.
        exported: the comparison with an ONNX file, if one was written.
    """
    permutation = report.certificate
    facts = [
        ("method", f"{report.method}, {counted(report.sweeps, 'sweep')}"),
        (
            "moved",
            f"{permutation.units_moved} of {counted(permutation.units, 'unit')}, "
            f"in {counted(len(permutation.classes), 'class', 'classes')}",
        ),
        ("distance", f"{report.distance_before:.6g} → {report.distance_after:.6g}"),
        ("agreement", f"{report.objective_before:.6g} → {report.objective_after:.6g}"),
        ("proof", _proof(report.equivalence)),
    ]
    if exported is not None:
        facts.append(("ONNX file", str(exported)))
    facts.append(("seconds", ", ".join(f"{k} {v:.2f}" for k, v in report.seconds.items())))
    facts += [("no rule for", operator) for operator in report.unknown_operators]
    facts += [("note", note) for note in (*notes, *report.notes)]
    return facts


def _proof(equivalence: EquivalenceReport | None) -> str:
    return "no unit moved: there is nothing to compare" if equivalence is None else str(equivalence)


def percent(share: float) -> str:
    """A share in percent, which is never rounded to all or nothing.

    Example:
        >>> percent(0.5), percent(0.99999), percent(1.0)
        ('50.00%', '> 99.99%', '100.00%')
    """
    if 0.99995 <= share < 1:
        return "> 99.99%"
    return "< 0.01%" if 0 < share < 0.00005 else f"{share:.2%}"


def _totals(symmetry: Symmetry) -> Table:
    totals = Table.grid(padding=(0, 2))
    totals.add_row("classes", str(len(symmetry.classes)))
    totals.add_row("log10 of the order of the group", f"{symmetry.log10_order():.3f}")
    totals.add_row("coverage", f"{percent(symmetry.coverage())} of parameter elements")
    unknown = ", ".join(symmetry.unknown_operators) or "none"
    totals.add_row("operators without a rule", escape(unknown))
    return totals


def _pins(symmetry: Symmetry) -> Table:
    """Axes by the kind of their reason."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for (tensor, axis), reason in symmetry.pins.items():
        kinds[reason.kind].append(f"{tensor}[{axis}]")
    table = Table(title="pinned axes of parameters and buffers")
    table.add_column("axes", justify="right")
    table.add_column("reason", overflow="fold")
    table.add_column("for instance", overflow="fold")
    for kind, axes in sorted(kinds.items(), key=lambda item: -len(item[1])):
        table.add_row(str(len(axes)), escape(kind), escape(axes[0]))
    return table
