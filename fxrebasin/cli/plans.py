"""What a command is going to do, and what that takes, before any tensor is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fxrebasin
from fxrebasin.cli.documents import command_document
from fxrebasin.cli.headers import Header, header_of
from fxrebasin.cli.options import Inputs, Talk
from fxrebasin.cli.talking import show
from fxrebasin.cli.work import Bench
from fxrebasin.facts import bytes_text, counted
from fxrebasin.symmetry import Symmetry
from fxrebasin.wording import listed

_FLOAT32, _FLOAT64 = 4, 8
_SHOWN = 5


@dataclass(frozen=True)
class Comparison:
    """Which tensors of a checkpoint are compared with those of the first.

    Args:
        compared: names of tensors that units can be permuted in, and that both have.
        ignored: names of those that are not compared, because they are ignored.
    """

    compared: tuple[str, ...]
    ignored: tuple[str, ...]


def show_plan(
    bench: Bench, paths: Sequence[Path], inputs: Inputs, talk: Talk, command: str, out: Path | None
) -> None:
    """Print what would be done; only headers of the checkpoints are read.

    Args:
        bench: has the model, with weights of its own.
        paths: of the checkpoints, the one that the others are matched with first.
        inputs: which outputs and buffers count.
        talk: what is printed.
        command: its name.
        out: what would be written, if anything.
    """
    symmetry = fxrebasin.analyze(
        bench.module, bench.example.args, bench.example.kwargs, **inputs.choices
    )
    headers = [header_of(path) for path in paths]
    comparison = _comparison(symmetry, bench.reading.ignore)
    memory = _memory(symmetry, headers)
    document = {
        **command_document(command),
        "dry_run": True,
        "model": bench.name,
        "inputs": list(bench.shapes()),
        "checkpoints": [_header_document(header) for header in headers],
        "classes": [{"name": c.name, "units": c.size, "copies": c.count} for c in symmetry.classes],
        "log10_order": symmetry.log10_order(),
        "coverage": symmetry.coverage(),
        "compared": list(comparison.compared),
        "ignored": list(comparison.ignored),
        "memory_bytes": memory,
        "out": None if out is None else str(out),
        "notes": list(symmetry.notes),
    }
    show(talk, _view(bench, symmetry, headers, (comparison, memory, out)), document)


def _view(
    bench: Bench,
    symmetry: Symmetry,
    headers: Sequence[Header],
    rest: tuple[Comparison, int, Path | None],
) -> list[tuple[str, str]]:
    comparison, memory, out = rest
    rows = [
        ("model", bench.name),
        ("inputs", ", ".join(bench.shapes())),
        *((("reference" if not k else "moves"), _line(h)) for k, h in enumerate(headers)),
        ("symmetry", _classes(symmetry)),
        ("compared", counted(len(comparison.compared), "tensor")),
        ("ignored", listed(comparison.ignored, _SHOWN) or "nothing"),
        ("memory", f"about {bytes_text(memory)} at most"),
        ("writes", "nothing" if out is None else str(out)),
        *(("note", note) for note in symmetry.notes),
        ("", "dry run: no tensor was read, and nothing was written"),
    ]
    return rows


def _line(header: Header) -> str:
    kinds = ", ".join(header.dtypes) or "kinds of numbers unknown before it is read"
    count = f"{len(header.shapes)} tensors, " if header.shapes else ""
    return f"{header.path}: {count}{kinds}, {bytes_text(header.bytes)}"


def _classes(symmetry: Symmetry) -> str:
    sizes: dict[str, int] = {}
    for c in symmetry.classes:
        text = f"{c.size}" if c.count == 1 else f"{c.count} × {c.size}"
        sizes[text] = sizes.get(text, 0) + 1
    parts = [f"{n} × {text} units" if n > 1 else f"{text} units" for text, n in sizes.items()]
    order = f"log10 of the number of permutations {symmetry.log10_order():.3f}"
    count = counted(len(symmetry.classes), "class", "classes")
    return f"{count} ({listed(parts, _SHOWN)}); {order}"


def _comparison(symmetry: Symmetry, ignore: Sequence[str]) -> Comparison:
    from fnmatch import fnmatchcase

    names = [name for name in symmetry.parameters if name in symmetry.layout]
    ignored = tuple(n for n in names if any(fnmatchcase(n, pattern) for pattern in ignore))
    return Comparison(tuple(n for n in names if n not in ignored), ignored)


def _memory(symmetry: Symmetry, headers: Sequence[Header]) -> int:
    """The model, every checkpoint, the float64 copies that prove, and the largest assignment."""
    elements = sum(math.prod(shape) for shape in symmetry.shapes.values())
    largest = max((c.size**2 for c in symmetry.classes), default=0)
    stored = sum(sum(header.dtypes.values()) or header.bytes for header in headers)
    return elements * (_FLOAT32 + 2 * _FLOAT64) + stored + largest * 2 * _FLOAT32


def _header_document(header: Header) -> Mapping[str, Any]:
    return {
        "path": str(header.path),
        "tensors": len(header.shapes),
        "dtypes": dict(header.dtypes),
        "bytes": header.bytes,
    }
