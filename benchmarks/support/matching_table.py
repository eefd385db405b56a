"""The figures of the matching benchmark, as CSV, Markdown and a table for the terminal."""

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


@dataclass(frozen=True)
class Row:
    """One network and one seed; None where something was not measured, or cannot be.

    Seconds are those of solving alone; `analyse_seconds` and `rebasin_graph_seconds` are what each
    side takes before that, and `match_seconds` is our solving with the checks before and the
    figures after. `shared` is with only the classes that the peer has too, `ours` with all of
    them. `floor` is the time of the products and assignments of `ours`. `rebasin_error` is the
    relative change of the function by the peer's result. `noise_01` and `noise_03` are the shares
    of units that are found again in a planted copy with that noise.
    """

    model: str
    seed: int
    parameters: int = 0
    classes: int = 0
    shared_classes: int | None = None
    analyse_seconds: float | None = None
    match_seconds: float | None = None
    ours_seconds: float | None = None
    shared_seconds: float | None = None
    rebasin_seconds: float | None = None
    rebasin_graph_seconds: float | None = None
    plain_seconds: float | None = None
    floor_seconds: float | None = None
    ours_sweeps: int | None = None
    rebasin_sweeps: int | None = None
    plain_sweeps: int | None = None
    ours_objective: float | None = None
    shared_objective: float | None = None
    rebasin_objective: float | None = None
    plain_objective: float | None = None
    rebasin_error: float | None = None
    noise_01: float | None = None
    noise_03: float | None = None
    peak_bytes: int | None = None
    allowed_bytes: int | None = None
    notes: str = ""


# Title, key, format; and ratios: what is divided by what.
_FIGURES = (
    ("analyse s", "analyse_seconds", ".2f"),
    ("match s", "match_seconds", ".2f"),
    ("ours s", "ours_seconds", ".3f"),
    ("shared s", "shared_seconds", ".3f"),
    ("rebasin s", "rebasin_seconds", ".2f"),
    ("plain s", "plain_seconds", ".2f"),
    ("floor s", "floor_seconds", ".3f"),
    ("sweeps", "ours_sweeps", ".0f"),
    ("rebasin", "rebasin_sweeps", ".0f"),
    ("plain", "plain_sweeps", ".0f"),
    ("objective", "ours_objective", ".1f"),
    ("shared", "shared_objective", ".1f"),
    ("rebasin", "rebasin_objective", ".1f"),
    ("plain", "plain_objective", ".1f"),
    ("rebasin changes outputs by", "rebasin_error", ".0e"),
    ("noise 0.1", "noise_01", ".2%"),
    ("noise 0.3", "noise_03", ".2%"),
)
_RATIOS = (
    ("rebasin / shared", "rebasin_seconds", "shared_seconds", ".1f"),
    ("rebasin / ours", "rebasin_seconds", "ours_seconds", ".1f"),
    ("plain / ours", "plain_seconds", "ours_seconds", ".1f"),
    ("ours / floor", "ours_seconds", "floor_seconds", ".2f"),
    ("peak / allowed", "peak_bytes", "allowed_bytes", ".2f"),
)


def write_tables(out: Path, label: str, rows: Sequence[Row], clock: str) -> None:
    """Write `<out>/<label>.csv`, all rows, and `<out>/<label>.md`, the means over the seeds."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    publish(out / f"{label}.csv", buffer.getvalue().encode(), overwrite=True)
    publish(out / f"{label}.md", _markdown(rows, clock).encode(), overwrite=True)


def console_table(rows: Sequence[Row]) -> Table:
    """The ratios, for the terminal."""
    titles, lines = _ratios(rows)
    table = Table()
    for title in titles:
        table.add_column(title, justify="left" if title == "model" else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _markdown(rows: Sequence[Row], clock: str) -> str:
    parts = [
        "# Weight matching beside rebasin and plain git-re-basin",
        "",
        f"Means over the seeds. Seconds are {clock}, of solving alone; ours take no analysis, and "
        "rebasin's not its graph. `shared`: only the classes that rebasin has too. `match` adds "
        f"our checks and figures. {_environment()}",
    ]
    notes = [f"- {row.model}, seed {row.seed}: {row.notes}" for row in rows if row.notes]
    for titles, lines in (_ratios(rows), _figures(rows)):
        parts += ["", f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
        parts += [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*parts, *(["", *notes] if notes else [])]) + "\n"


def _ratios(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    lines = []
    for name, same in _by_model(rows):
        cells = [name, str(len(same))]
        for _, over, under, style in _RATIOS:
            one, two = _mean(same, over), _mean(same, under)
            cells.append("–" if one is None or not two else format(one / two, style))
        lines.append(cells)
    return ["model", "seeds", *(title for title, *_ in _RATIOS)], lines


def _figures(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    lines = []
    for name, same in _by_model(rows):
        first = same[0]
        shared = "–" if first.shared_classes is None else str(first.shared_classes)
        cells = [name, f"{first.parameters:,}", f"{first.classes} ({shared})"]
        for _, key, style in _FIGURES:
            value = _mean(same, key)
            cells.append("–" if value is None else format(value, style))
        lines.append(cells)
    titles = ["model", "parameters", "classes (shared)", *(title for title, *_ in _FIGURES)]
    return titles, lines


def _by_model(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = dict.fromkeys(row.model for row in rows)
    return [(name, [row for row in rows if row.model == name]) for name in names]


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [getattr(row, key) for row in rows]
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _environment() -> str:
    names = ("torch", "torchvision", "scipy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Made with {versions}, {torch.get_num_threads()} threads of {os.cpu_count()} cores."
