"""The figures of the methods benchmark, as CSV, Markdown and a table for the terminal."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import torch
from rich.table import Table

from fxrebasin.storage.files import publish

_TITLES = (
    "network",
    "method",
    "pairs",
    "objective",
    "distance",
    "barrier",
    "accuracy half way",
    "CPU seconds",
)


@dataclass(frozen=True)
class Row:
    """One pair of networks and one method.

    `objective` is the inner product of the parameters of A and of the permuted B, `barrier` in nats
    of held-out cross-entropy, `seconds` those that matching
    took of one processor.
    """

    kind: str
    seed: int
    method: str
    objective: float
    distance: float
    barrier: float
    midpoint_accuracy: float
    seconds: float


def write_tables(out: Path, rows: Sequence[Row]) -> None:
    """Write `<out>/pairs.csv` and `<out>/methods.md`, replacing those that are there."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    publish(out / "pairs.csv", buffer.getvalue().encode(), overwrite=True)
    publish(out / "methods.md", _markdown(rows).encode(), overwrite=True)


def console_table(rows: Sequence[Row]) -> Table:
    """The means over the pairs."""
    table = Table()
    for title in _TITLES:
        table.add_column(title, justify="left" if title in _TITLES[:2] else "right")
    for line in _lines(rows):
        table.add_row(*line)
    return table


def _markdown(rows: Sequence[Row]) -> str:
    lines = [
        "# Matching methods on pairs of networks trained on scikit-learn's digits",
        "",
        f"Means over the pairs, in brackets least and most. {_environment()}",
        "",
        f"| {' | '.join(_TITLES)} |",
        f"|{' --- |' * len(_TITLES)}",
        *(f"| {' | '.join(line)} |" for line in _lines(rows)),
    ]
    return "\n".join(lines) + "\n"


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    keys = dict.fromkeys((row.kind, row.method) for row in sorted(rows, key=lambda r: r.kind))
    return [
        _line([row for row in rows if (row.kind, row.method) == (kind, method)])
        for kind, method in keys
    ]


def _line(same: Sequence[Row]) -> list[str]:
    return [
        same[0].kind,
        same[0].method,
        str(len(same)),
        spread([row.objective for row in same], ".2f"),
        spread([row.distance for row in same], ".2f"),
        spread([row.barrier for row in same], ".3f"),
        spread([row.midpoint_accuracy for row in same], ".3f"),
        f"{mean(row.seconds for row in same):.1f}",
    ]


def spread(values: Sequence[float], style: str) -> str:
    """Mean, and in brackets least and most.

    Args:
        values: at least one.
        style: format of a number.
    """
    return f"{mean(values):{style}} [{min(values):{style}}, {max(values):{style}}]"


def _environment() -> str:
    names = ("torch", "scikit-learn")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Made with {versions}, {torch.get_num_threads()} threads of {os.cpu_count()} cores."
