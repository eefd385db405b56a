"""What the demo finds out, and the table it is printed as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fxrebasin.demo.barrier import STATISTICS_IMAGES
from fxrebasin.demo.plot import Panel, line
from fxrebasin.demo.subjects import Subject
from fxrebasin.merge import BarrierCurve
from fxrebasin.reports.equivalence import EquivalenceReport


@dataclass(frozen=True)
class Comparison:
    """The way from A to B, and the way from A to rebased B."""

    before: BarrierCurve
    after: BarrierCurve


@dataclass(frozen=True)
class Outcome:
    """What the demo found out about one pair of networks.

    Attributes:
        subject: what was trained.
        parameters: number of parameter elements of one network.
        classes: number of permutation classes.
        log10_order: log10 of the number of permutations that leave the function unchanged.
        distances: Euclidean distance of A's parameters to B's, before and after.
        plain: losses and accuracies on the way from A to B.
        recomputed: the same with recomputed BatchNorm statistics; None without BatchNorm.
        float64: B against rebased B in float64.
        onnxruntime: B in PyTorch against the ONNX file of rebased B on onnxruntime.
        onnx_file: the file that was written.
    """

    subject: Subject
    parameters: int
    classes: int
    log10_order: float
    distances: tuple[float, float]
    plain: Comparison
    recomputed: Comparison | None
    float64: EquivalenceReport
    onnxruntime: EquivalenceReport
    onnx_file: Path

    def document(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        curves = {"plain": self.plain, "recomputed": self.recomputed}
        return {
            "title": self.subject.title,
            "parameters": self.parameters,
            "classes": self.classes,
            "log10_order": self.log10_order,
            "distance_before": self.distances[0],
            "distance_after": self.distances[1],
            "barriers": {
                name: pair and {"before": pair.before.as_dict(), "after": pair.after.as_dict()}
                for name, pair in curves.items()
            },
            "float64": self.float64.to_dict(),
            "onnxruntime": self.onnxruntime.to_dict(),
            "onnx_file": str(self.onnx_file),
        }

    def panel(self) -> Panel:
        """The curves as the picture shows them."""
        lines = [line(self.plain.before, rebased=False), line(self.plain.after, rebased=True)]
        if self.recomputed is not None:
            lines.append(line(self.recomputed.before, rebased=False, recomputed=True))
            lines.append(line(self.recomputed.after, rebased=True, recomputed=True))
        return Panel(self.subject.title, tuple(lines))


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo found and wrote; `seconds` is wall-clock time."""

    outcomes: tuple[Outcome, ...]
    picture: Path
    seconds: float


def results_table(outcomes: Sequence[Outcome]) -> Table:
    """One column per pair of networks; an arrow leads from before to after rebasing."""
    table = Table(title="A and B, trained from different seeds: before → after rebasing B")
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.subject.title, justify="right")
    for label, cell in _ROWS:
        table.add_row(label, *(cell(outcome) for outcome in outcomes))
    table.add_section()
    _add_comparison(table, [outcome.plain for outcome in outcomes])
    recomputed = [outcome.recomputed for outcome in outcomes]
    if any(recomputed):
        table.add_section()
        table.add_row("with BatchNorm statistics")
        table.add_row(f"of {STATISTICS_IMAGES} training images")
        _add_comparison(table, recomputed)
    table.add_section()
    for label, cell in _CHECKS:
        table.add_row(label, *(cell(outcome) for outcome in outcomes))
    return table


def _add_comparison(table: Table, pairs: Sequence[Comparison | None]) -> None:
    for label, cell in _CURVE_ROWS:
        table.add_row(label, *("–" if pair is None else cell(pair) for pair in pairs))


def _change(cell: Callable[[BarrierCurve], str]) -> Callable[[Comparison], str]:
    return lambda pair: f"{cell(pair.before)} → {cell(pair.after)}"


def _ends(curve: BarrierCurve) -> str:
    accuracies = curve.accuracies or (None,)
    return f"{_percent(accuracies[0])}, {_percent(accuracies[-1])}"


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{accuracy:.1%}"


def _verdict(report: EquivalenceReport) -> str:
    return f"{report.max_rel:.1e} ({'pass' if report.passed else 'FAIL'})"


_ROWS: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
    ("parameters", lambda o: f"{o.parameters:,}"),
    ("permutation classes", lambda o: str(o.classes)),
    ("log10 of the group's order", lambda o: f"{o.log10_order:.1f}"),
    ("distance of A and B", lambda o: f"{o.distances[0]:.2f} → {o.distances[1]:.2f}"),
)
_CURVE_ROWS: tuple[tuple[str, Callable[[Comparison], str]], ...] = (
    ("loss of A, of B", lambda p: f"{p.before.losses[0]:.3f}, {p.before.losses[-1]:.3f}"),
    ("midpoint loss", _change(lambda curve: f"{curve.midpoint[0]:.3f}")),
    ("accuracy of A, of B", lambda p: _ends(p.before)),
    ("midpoint accuracy", _change(lambda curve: _percent(curve.midpoint[1]))),
    ("barrier", _change(lambda curve: f"{curve.barrier:.3f}")),
)
_CHECKS: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
    ("float64 relative error", lambda o: _verdict(o.float64)),
    ("onnxruntime relative error", lambda o: _verdict(o.onnxruntime)),
    ("tolerance on onnxruntime", lambda o: f"{o.onnxruntime.tolerance:.1e}"),
)
