"""What commands print: a symmetry and a report for people, a symmetry for programs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fxrebasin.facts import counted, facts_text
from fxrebasin.show.numbering import common_name, folded_classes, numbers_of

_LISTED = 3

if TYPE_CHECKING:
    from fxrebasin.reports.equivalence import EquivalenceReport
    from fxrebasin.reports.rebasin import RebasinReport
    from fxrebasin.symmetry import Symmetry


def symmetry_view(title: str, symmetry: Symmetry, inputs: Sequence[str] = ()) -> RenderableType:
    """The classes, what they move and what ties it; then totals; then pinned axes by reason.

    Classes in the same place of repeated layers are one row, as in the picture.

    Args:
        title: above the table.
        symmetry: of a model.
        inputs: that the model was run on, in words.
    """
    table = Table(title=escape(title))
    table.add_column("#", justify="right")
    table.add_column("class", overflow="fold")
    table.add_column("layers", justify="right")
    table.add_column("units", justify="right")
    table.add_column("copies", overflow="fold")
    if symmetry.groups is not None:
        table.add_column("group", overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("moves", overflow="fold")
    table.add_column("tied by", overflow="fold")
    numbers = numbers_of(symmetry)
    for c, names in folded_classes(symmetry):
        within = ", ".join(numbers[name] for name in c.within)
        copies = f"{c.count}, inside {within}" if within else str(c.count)
        axes = _listed([_axis_text(symmetry, name, axis) for name, axis in c.axes])
        tied = ", ".join(f"{_short(o)} ×{n}" for o, n in symmetry.tying_operators(c).items())
        layers = str(len(names)) if len(names) > 1 else ""
        cells = (common_name(names), layers, str(c.size), copies, *_groups(symmetry, names))
        held = f"{_held(symmetry, names):,}"
        table.add_row(numbers[c.name], *map(escape, (*cells, held, axes, tied or "–")))
    totals = facts_text(_totals(symmetry, inputs))
    return Group(table, Text(totals), _pins(symmetry))


def _axis_text(symmetry: Symmetry, name: str, axis: int) -> str:
    """An axis of a tensor, with the shape of that."""
    return f"{name}[{axis}] {'×'.join(map(str, symmetry.shapes[name]))}"


def _held(symmetry: Symmetry, names: Sequence[str]) -> int:
    """The number of parameter elements that some classes move."""
    held = {n for c in symmetry.classes if c.name in names for n, _ in c.axes}
    return sum(math.prod(symmetry.shapes[n]) for n in symmetry.parameters if n in held)


def _groups(symmetry: Symmetry, names: Sequence[str]) -> tuple[str, ...]:
    """The groups that act on some classes, if these were looked for."""
    if symmetry.groups is None:
        return ()
    kinds = dict.fromkeys(c.kind.value for c in symmetry.classes if c.name in names)
    return (", ".join(kinds),)


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
        "parameters": _parameters(symmetry),
        "shapes": {name: list(shape) for name, shape in symmetry.shapes.items()},
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
                **({} if symmetry.groups is None else {"kind": c.kind.value}),
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
    proof: str | None = None,
) -> list[tuple[str, str]]:
    """What matching and permuting did, one fact after the other.

    Args:
        report: of the match.
        notes: of the checkpoints that were read.
        exported: the comparison with an ONNX file, if one was written.
        proof: what was proved, where that is not in the report.
    """
    permutation = report.certificate
    facts = [
        ("method", f"{report.method}, {counted(report.sweeps, 'sweep')}"),
        (
            "moved",
            f"{permutation.units_moved} of {counted(permutation.units, 'unit')}, "
            f"in {counted(len(permutation.classes), 'class', 'classes')}",
        ),
        *(() if report.groups is None else (("groups", report.groups),)),
        ("distance", f"{report.distance_before:.6g} → {report.distance_after:.6g}"),
        ("agreement", f"{report.objective_before:.6g} → {report.objective_after:.6g}"),
        ("checked", proof or _proof(report.equivalence)),
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


def _parameters(symmetry: Symmetry) -> int:
    return sum(math.prod(symmetry.shapes[name]) for name in symmetry.parameters)


def _totals(symmetry: Symmetry, inputs: Sequence[str]) -> list[tuple[str, str]]:
    covered = f"{percent(symmetry.coverage())} of {_parameters(symmetry):,} parameter elements"
    return [
        *([("inputs", ", ".join(inputs))] if inputs else []),
        ("classes", str(len(symmetry.classes))),
        ("log10 of the order of the group", f"{symmetry.log10_order():.3f}"),
        *_continuous(symmetry),
        ("coverage", covered),
        ("operators without a rule", ", ".join(symmetry.unknown_operators) or "none"),
        *(("note", note) for note in symmetry.notes),
    ]


def _continuous(symmetry: Symmetry) -> list[tuple[str, str]]:
    """What may change bit by bit, if that was looked for."""
    if symmetry.groups is None or not symmetry.dimension():
        return []
    free = sum(gauge.dimension for gauge in symmetry.gauges)
    text = f"{symmetry.dimension():,}, of which others make up for {free:,}"
    return [("dimension of the group", text)]


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
