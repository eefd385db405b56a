"""The figures of the equivalence benchmark, as CSV, Markdown and a table for the terminal."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import get_type_hints

import torch
from rich.table import Table

from fxrebasin.storage.files import publish
from fxrebasin.wording import listed

NOT_FINISHED = "not finished"


@dataclass(frozen=True)
class Row:
    """One model, on square images of `size`. Figures are None where a stage was not reached.

    Columns that begin with "file" are those of ONNX-in: the model's file, re-based towards that of
    the permuted model. `file_recovered` is the share of its tensors that then are bit for bit those
    of the permuted model. Where the file has a larger group, `file_larger` names the tensors whose
    axes are free in it alone.

    Errors are relative. `smallest_tolerance` is the smallest on onnxruntime that would have passed,
    `tolerance` the one that was allowed, a multiple of float32's own error in this model.
    `control_error` is the float64 error with one tensor left unpermuted. `reason` says why the
    model fails; it is empty if it passes.
    """

    model: str
    size: int | None = None
    parameters: int | None = None
    classes: int | None = None
    log10_order: float | None = None
    coverage: float | None = None
    unknown_operators: str = ""
    build_seconds: float | None = None
    analyse_seconds: float | None = None
    apply_seconds: float | None = None
    float64_seconds: float | None = None
    onnx_seconds: float | None = None
    file_seconds: float | None = None
    float64_error: float | None = None
    control_error: float | None = None
    onnx_error: float | None = None
    smallest_tolerance: float | None = None
    tolerance: float | None = None
    file_log10_order: float | None = None
    file_error: float | None = None
    file_recovered: float | None = None
    file_larger: str = ""
    reason: str = NOT_FINISHED

    @property
    def passed(self) -> bool:
        """Whether all stages ran and found nothing wrong."""
        return not self.reason


# Title and format of the columns for people; CSV has all of them at full precision.
_COLUMNS = (
    ("model", "model", ""),
    ("size", "image", "d"),
    ("parameters", "parameters", ","),
    ("classes", "classes", "d"),
    ("log10_order", "log10 order", ".3f"),
    ("coverage", "coverage", ".2%"),
    ("unknown_operators", "unknown operators", ""),
    ("analyse_seconds", "analyse s", ".2f"),
    ("apply_seconds", "apply s", ".2f"),
    ("float64_seconds", "float64 s", ".1f"),
    ("onnx_seconds", "ONNX s", ".1f"),
    ("file_seconds", "ONNX-in s", ".1f"),
    ("float64_error", "float64 error", ".1e"),
    ("control_error", "control error", ".1e"),
    ("onnx_error", "onnxruntime error", ".1e"),
    ("smallest_tolerance", "smallest tolerance", ".1e"),
    ("tolerance", "tolerance", ".1e"),
    ("file_log10_order", "ONNX-in log10 order", ".3f"),
    ("file_error", "ONNX-in float64 error", ".1e"),
    ("file_recovered", "ONNX-in recovered", ".2%"),
    ("file_larger", "only ONNX-in", ""),
    ("reason", "verdict", ""),
)


_ON_A_LINE = {"model", "size", "log10_order", "coverage", "float64_error", "onnx_error"}
_ON_A_LINE |= {"file_log10_order", "file_recovered", "reason"}
"""What a terminal has room for."""

_NAMED = 2
_WORDS = 160
"""Names of tensors, and characters of a verdict, that tables for people show."""


def write_tables(out: Path, label: str, rows: Sequence[Row]) -> None:
    """Write `<out>/<label>.csv` and `<out>/<label>.md`, replacing those that are there."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    publish(out / f"{label}.csv", buffer.getvalue().encode(), overwrite=True)
    publish(out / f"{label}.md", _markdown(rows).encode(), overwrite=True)


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file that `write_tables` wrote; none if there is no such file."""
    if not path.exists():
        return []
    hints = get_type_hints(Row)
    with path.open(newline="") as file:
        return [
            Row(**{key: _parsed(text, hints[key]) for key, text in record.items()})
            for record in csv.DictReader(file)
        ]


def _parsed(text: str, hint: object) -> object:
    if hint is str:
        return text
    if not text:
        return None
    return int(text) if hint == int | None else float(text)


def console_table(rows: Sequence[Row]) -> Table:
    """The columns that fit a terminal."""
    table = Table()
    columns = [column for column in _COLUMNS if column[0] in _ON_A_LINE]
    for key, title, _ in columns:
        text = key in ("model", "reason")
        table.add_column(title, justify="left" if text else "right", no_wrap=key == "model")
    for row in rows:
        table.add_row(*_cells(row, columns), style=None if row.passed else "red")
    return table


def _markdown(rows: Sequence[Row]) -> str:
    passed = sum(row.passed for row in rows)
    titles = [title for _, title, _ in _COLUMNS]
    lines = [
        "# A random element of the symmetry group, applied to models and found again in ONNX files",
        "",
        f"{passed} of {len(rows)} pass, {_with_files(rows)} of them with ONNX-in. {_environment()}",
        "",
        f"| {' | '.join(titles)} |",
        f"|{' --- |' * len(titles)}",
    ]
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in _cells(row, _COLUMNS))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _with_files(rows: Sequence[Row]) -> int:
    return sum(row.passed and row.file_recovered is not None for row in rows)


def _cells(row: Row, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    operators = "–" if row.classes is None else row.unknown_operators or "none"
    values = {
        **asdict(row),
        "unknown_operators": operators,
        "file_larger": listed(row.file_larger.split(), _NAMED),
        "reason": shorten(row.reason or "pass", _WORDS, placeholder=" ..."),
    }
    return ["–" if values[key] is None else format(values[key], style) for key, _, style in columns]


def _environment() -> str:
    names = ("torch", "torchvision", "timm", "transformers", "onnx")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Made with {versions}, {torch.get_num_threads()} threads of {os.cpu_count()} cores."
