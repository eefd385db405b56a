"""The tables of docs/symmetries.md, made from the rows of the experiment."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from textwrap import fill

from benchmarks.experiments.lines import grouped, mean_of
from benchmarks.experiments.symmetry_rows import Row
from fxrebasin.errors import InputError

_SHOWN = ("untouched", "weight", "merge_many", "activation", "straight_through", "learned")
_PAIRS, _WIDTH = 3, 108
_MARK = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def rows_of(path: Path) -> list[Row]:
    """The rows that the experiment wrote.

    Args:
        path: of its `barriers.csv`.
    """
    numbers = ("barrier", "midpoint_loss", "midpoint_accuracy", "seconds", "error")
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(**{**row, **{name: float(row[name]) for name in numbers}})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def renewed(page: str, rows: Sequence[Row]) -> str:
    """A page with figures made anew.

    Args:
        page: with a part between the marks `figures` and `end of figures`.
        rows: of all networks.

    Raises:
        InputError: the page has no such part.
    """
    if not _MARK.search(page):
        raise InputError(
            "the page has no part between <!-- figures --> and <!-- end of figures -->"
        )
    shown = [row for row in rows if row.way.startswith(_SHOWN) and row.barrier >= 0]
    pairs = [row for row in shown if not row.is_joint]
    joint = [row for row in rows if row.is_joint]
    worst = max(row.error for row in rows)
    lowest = ", ".join(
        f"{network} {least.barrier:.3f} ({least.way})"
        for network, same in grouped(pairs, lambda row: row.network).items()
        for least in [min(same, key=lambda row: row.barrier)]
    )
    parts = [
        "Held-out barriers in nats, on 11 points of the line: means of three pairs of networks "
        "from different seeds; where there were fewer, their number stands beside the mean.",
        _table("B is", pairs, _mean),
        f"The lowest barriers of any pair: {lowest}. Aligned models are off by at most {worst:.0e} "
        "in float64.",
    ]
    if joint:
        parts += [
            "The loss of the mean of three networks, above the mean of theirs, and in brackets "
            "the mean barrier of the three lines between two of them:",
            _table("three are aligned by", joint, _of_mean),
        ]
    parts = [part if part.startswith("|") else fill(part, _WIDTH) for part in parts]
    text = "\n\n".join(parts)
    return _MARK.sub(lambda mark: f"{mark[1]}{text}\n{mark[2]}", page)


def _table(head: str, rows: Sequence[Row], cell: Callable[[Sequence[Row]], str]) -> str:
    networks = list(dict.fromkeys(row.network for row in rows))
    ways = sorted(dict.fromkeys(row.way for row in rows), key=_place)
    found = grouped(rows, lambda row: (row.way, row.network))
    lines = [[head, *networks], ["---", *("---:" for _ in networks)]]
    for way in ways:
        lines.append([_spelt(way), *(cell(found.get((way, name), ())) for name in networks)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _place(way: str) -> tuple[int, int, int]:
    """Where a way stands: what may change, by which method, and after how many steps."""
    kinds = ("permutation", "signed", "all")
    kind = next((k + 1 for k, name in enumerate(kinds) if way.endswith(f"({name})")), 0)
    method = next((k for k, name in enumerate(_SHOWN) if way.startswith(name)), 0)
    steps = re.search(r"(\d+) steps", way)
    return kind, method, int(steps[1]) if steps else 0


def _spelt(way: str) -> str:
    """With its method as code."""
    return re.sub(r"^(\w+)(, .*)? \((\w+)\)$", r"`\1`, \3\2", way)


def _mean(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    count = "" if len(rows) == _PAIRS else f" ({len(rows)})"
    return f"{mean_of([row.barrier for row in rows]):.3f}{count}"


def _of_mean(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    [row] = rows
    return f"{row.barrier:.3f} ({mean_of(_numbers(row.note.split(', '))):.3f})"


def _numbers(words: Iterable[str]) -> list[float]:
    return [float(word) for word in words]
