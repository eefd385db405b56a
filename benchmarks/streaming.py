"""Checkpoints larger than memory: what is read, how much memory that takes, and how long.

    python -m benchmarks.streaming --shapes            bytes for Llama 8B, 70B and 405B, no weights
    python -m benchmarks.streaming --gib 0.5           a pair of 0.5 GiB, beside the way in memory
    python -m benchmarks.streaming --gib 8 --alone     a larger pair, streamed only

The pair is of a Llama's shape in bfloat16, in shards of a tenth: one of random numbers, and one
that is the first with its units in another order. The command runs in a process of its own; its
memory is what the system says it took at most, and what of that was not files. Beside it stands the
time of reading both checkpoints once, the second again, and of writing and reading the result. Rows
are added to `<out>/pairs.csv`; the tables are written anew from there.
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click
import torch

import fxrebasin
from benchmarks.support.peak_memory import peaks_of
from fxrebasin.layout import AxisGroup, PermutationClass, Piece, Slot
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.models.valueless import without_values
from fxrebasin.storage.files import publish
from fxrebasin.storage.reading import Reading
from fxrebasin.streaming.making import Permuting, new_files, write_files, write_index
from fxrebasin.streaming.opening import open_checkpoint
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.safetensors_file import (
    bytes_of,
    growing,
    layout_of,
    new_layout,
    read_rows,
    write_rows,
)
from fxrebasin.streaming.schedule import make_schedule
from fxrebasin.streaming.stored import Stored

SHAPES = {
    "8B": (4096, 14336, 32, 32, 8, 128256),
    "70B": (8192, 28672, 80, 64, 8, 128256),
    "405B": (16384, 53248, 126, 128, 8, 128256),
}
"""Width, width of the layers' inside, layers, heads, heads of keys and values, vocabulary."""
PAIR = (1536, 4096, 0, 12, 4, 32000)
_GIB = 2**30
_LAYER = re.compile(r"(model\.layers\.)(\d+)(\.)")


@dataclass(frozen=True)
class Row:
    """One run of the command; sizes in GiB, seconds of wall time."""

    gib: float
    way: str
    limit: str
    layers: int
    recovered: bool
    seconds: float
    matching: float
    files_alone: float
    peak: float
    peak_without_files: float
    estimate: float
    reads_of_both: float


def configuration(shape: tuple[int, ...], layers: int) -> Any:
    """Of a Llama with that many layers."""
    ensure_torchvision()
    from transformers import LlamaConfig

    width, inside, _, heads, groups, words = shape
    return LlamaConfig(
        hidden_size=width, intermediate_size=inside, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, vocab_size=words,
        architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip


def model_of(shape: tuple[int, ...], layers: int) -> Any:
    """A Llama without values."""
    config = configuration(shape, layers)
    from transformers import LlamaForCausalLM

    with without_values():
        return LlamaForCausalLM(config).eval()


def deep_problem(shape: tuple[int, ...]) -> FileProblem:
    """The problem of a deep model, from the symmetry of one with two layers: all are alike."""
    layers = shape[2]
    model = model_of(shape, 2)
    symmetry = fxrebasin.analyze(model, torch.zeros(2, 8, dtype=torch.long))
    order = [name for name, _ in model.named_parameters()]
    plain = [name for name in order if not _LAYER.search(name)]
    of_layer = [name for name in order if _LAYER.search(name) and _layer(name) == 1]
    names = {n: n for n in plain} | {_at(n, k): n for k in range(layers) for n in of_layer}
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    sides = {new: (Stored(sizes[old], torch.bfloat16),) * 2 for new, old in names.items()}
    inside = [c for c in symmetry.classes if _LAYER.search(c.name)]
    one = [c for c in inside if _layer(c.name) == 1]
    classes = [c for c in symmetry.classes if c not in inside]
    classes += [_class_at(c, k) for k in range(layers) for c in one]
    layout = {
        new: tuple(_group_at(g, _layer(new)) for g in symmetry.layout[old])
        for new, old in names.items()
        if old in symmetry.layout
    }
    return FileProblem(tuple(classes), layout, sides, tuple(c.name for c in classes))


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    return int(found.group(2)) if found else 0


def _at(name: str, layer: int) -> str:
    return _LAYER.sub(rf"\g<1>{layer}\g<3>", name)


def _class_at(c: PermutationClass, layer: int) -> PermutationClass:
    within = tuple(_at(name, layer) for name in c.within)
    return PermutationClass(_at(c.name, layer), c.size, within, c.count)


def _group_at(group: AxisGroup, layer: int) -> AxisGroup:
    def moved(slot: Slot) -> Slot:
        name = slot.class_name
        return Slot(None if name is None else _at(name, layer), slot.size, slot.within)

    pieces = (Piece(tuple(map(moved, p.slots)), p.positions) for p in group.pieces)
    return AxisGroup(group.axes, tuple(pieces))


def shapes_table() -> str:
    """Bytes of a run over checkpoints of these shapes, with one sweep."""
    lines = [
        "# What a run reads and writes, from shapes alone",
        "",
        "GB are 10⁹ bytes, GiB 2³⁰. A run with one sweep reads the reference once and the other",
        "model twice (to match, and to write), writes the result and reads it again.",
        "",
        "| shape | checkpoint, GB | first sweep reads, GB | whole run, GB | reads of both "
        "| memory, GiB | tensors of the largest class, GiB | its gains, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, shape in SHAPES.items():
        problem = deep_problem(shape)
        found = make_schedule(problem)
        whole = problem.bytes_of(problem.sides)
        run = found.bytes_first + 3 * whole / 2
        cells = [
            *(name, f"{whole / 2e9:.1f}", f"{found.bytes_first / 1e9:.1f}", f"{run / 1e9:.1f}"),
            f"{(found.bytes_first + whole / 2) / whole:.2f}",
            *(f"{n / _GIB:.2f}" for n in (found.peak, found.bytes_largest, found.bytes_matrix)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def layers_for(gib: float) -> int:
    """How many layers make a checkpoint of that size."""
    one, two = (_bytes(model_of(PAIR, layers)) for layers in (1, 2))
    return max(1, round((gib * _GIB - (2 * one - two)) / (two - one)))


def _bytes(model: Any) -> int:
    return sum(2 * p.numel() for p in model.parameters())


def write_pair(folder: Path, layers: int) -> None:
    """A checkpoint of random numbers, and one that is the same in another order."""
    model = model_of(PAIR, layers)
    configuration(PAIR, layers).save_pretrained(folder / "a")
    limit = _bytes(model) // 10
    parts: list[dict[str, Stored]] = [{}]
    for name, p in model.named_parameters():
        stored = Stored(tuple(p.shape), torch.bfloat16)
        if parts[-1] and sum(s.bytes for s in parts[-1].values()) + stored.bytes > limit:
            parts.append({})
        parts[-1][name] = stored
    where = {}
    generator = torch.Generator().manual_seed(0)
    for k, part in enumerate(parts):
        name = f"model-{k + 1:05d}-of-{len(parts):05d}.safetensors"
        layout = new_layout(part, {"format": "pt"})
        with growing(folder / "a" / name, layout) as file:
            for tensor, start in layout.starts.items():
                drawn = torch.randn(part[tensor].shape, generator=generator).mul_(0.02)
                write_rows(file, start, drawn.to(torch.bfloat16))
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": _bytes(model)}, "weight_map": where}
    (folder / "a" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "b").mkdir()
    opened = open_checkpoint(folder / "a", model, Reading())
    symmetry = fxrebasin.analyze(model, torch.zeros(2, 8, dtype=torch.long))
    files = new_files(opened, None, None, others=False)
    write_files(opened, files, Permuting(opened, symmetry.random(1)), folder / "b")
    write_index(opened, files, folder / "b", opened.weights.name)
    for name in ("config.json",):
        (folder / "b" / name).write_bytes((folder / "a" / name).read_bytes())


def run_command(folder: Path, more: list[str]) -> tuple[dict[str, Any], float, float, float]:
    """What the command says, its seconds, and its peak memory in bytes: all, and without files."""
    out = folder / "out"
    command = [sys.executable, "-m", "fxrebasin", "transform", str(folder / "b")]
    command += ["--ref", str(folder / "a"), "--out", str(out), "--json", *more]
    began = time.perf_counter()
    with (folder / "report.json").open("wb") as report:
        process = subprocess.Popen(command, stdout=report)
        peak, anonymous = peaks_of(process)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise click.ClickException(f"the command failed with {process.returncode}")
    found = json.loads((folder / "report.json").read_text())
    return found, seconds, peak, anonymous


def same(one: Path, other: Path) -> bool:
    """Whether two folders have the same shards with the same tensors, bit for bit."""
    files = sorted(path.name for path in one.glob("*.safetensors"))
    if not files or files != sorted(path.name for path in other.glob("*.safetensors")):
        return False
    return all(_same_tensors(one / name, other / name) for name in files)


def _same_tensors(one: Path, other: Path) -> bool:
    left, right = layout_of(one), layout_of(other)
    if left.tensors != right.tensors:  # whatever their order in the file
        return False
    with one.open("rb", buffering=0) as a, other.open("rb", buffering=0) as b:
        pairs = (
            (read_rows(a, s, left.starts[n], None), read_rows(b, s, right.starts[n], None))
            for n, s in left.tensors.items()
        )
        return all(bytes_of(x) == bytes_of(y) for x, y in pairs)


def seconds_of_files(folder: Path) -> float:
    """Of reading both checkpoints, the second again, and of writing a copy and reading that."""
    began = time.perf_counter()
    for side in ("a", "b"):
        for path in (folder / side).glob("*.safetensors"):
            for _ in _blocks(path):
                pass
    copy = folder / "copy"
    for path in (folder / "b").glob("*.safetensors"):
        with copy.open("wb") as file:
            for block in _blocks(path):
                file.write(block)
        for _ in _blocks(copy):
            pass
    copy.unlink()
    return time.perf_counter() - began


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(2**24):
            yield block


def measured(gib: float, limit: str, alone: bool, room: Path | None) -> list[Row]:
    """The command on a pair, streamed and, unless alone, in memory."""
    layers = layers_for(gib)
    rows = []
    with tempfile.TemporaryDirectory(dir=room) as name:
        folder = Path(name)
        write_pair(folder, layers)
        alone_seconds = seconds_of_files(folder)
        ways = {"streamed": ["--max-memory", limit]} | ({} if alone else {"in memory": []})
        for way, more in ways.items():
            found, seconds, peak, anonymous = run_command(folder, more)
            whole = sum(p.stat().st_size for p in (folder / "b").glob("*.safetensors"))
            read = sum(found[side].get("bytes_read", 0) for side in ("ref", "model_b"))
            row = Row(
                gib,
                way,
                limit if way == "streamed" else "",
                layers,
                same(folder / "a", folder / "out"),
                round(seconds, 1),
                round(found["seconds"]["match"], 1),
                round(alone_seconds, 1),
                round(peak / _GIB, 2),
                round(anonymous / _GIB, 2),
                round(found.get("memory_bytes", 0) / _GIB, 2),
                round(read / (2 * whole), 2),
            )
            click.echo(row)
            rows.append(row)
            for path in (folder / "out").iterdir():
                path.unlink()
            (folder / "out").rmdir()
    return rows


def pairs_table(rows: list[Mapping[str, str]]) -> str:
    """The rows for people."""
    lines = [
        "# Pairs of Llama-shaped checkpoints in bfloat16, one a planted permutation of the other",
        "",
        "Memory of the whole process in GiB, with and without files that are mapped (programs and",
        "libraries); seconds of wall time, on 2 cores that other work took most of. `files alone`:",
        "both read once, the second again, the result written and read.",
        "",
        "| GiB each | way | limit | layers | recovered bit for bit | seconds | of that matching "
        "| files alone | seconds / (matching + files) | peak | peak without files "
        "| estimate | reads of both |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratio = float(row["seconds"]) / (float(row["matching"]) + float(row["files_alone"]))
        streamed = row["way"] == "streamed"
        cells = [
            *(
                row[n]
                for n in ("gib", "way", "limit", "layers", "recovered", "seconds", "matching")
            ),
            *(row["files_alone"], f"{ratio:.2f}", row["peak"], row["peak_without_files"]),
            *((row["estimate"], row["reads_of_both"]) if streamed else ("", "")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--shapes", is_flag=True, help="Bytes for large shapes; nothing is run.")
@click.option("--gib", type=float, help="Size of each checkpoint of a pair.")
@click.option("--limit", default="3GiB", show_default=True, help="--max-memory of the command.")
@click.option("--alone", is_flag=True, help="Do not run the way in memory beside it.")
@click.option("--room", type=click.Path(path_type=Path), help="Folder for the checkpoints.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/streaming")
)
def main(
    shapes: bool, gib: float | None, limit: str, alone: bool, room: Path | None, out: Path
) -> None:
    """Measure, print, and write the tables."""
    if shapes:
        text = shapes_table()
        click.echo(text)
        publish(out / "shapes.md", text.encode(), overwrite=True)
    if gib is None:
        return
    file = out / "pairs.csv"
    earlier = list(csv.DictReader(io.StringIO(file.read_text()))) if file.exists() else []
    made = [{k: str(v) for k, v in asdict(r).items()} for r in measured(gib, limit, alone, room)]
    rows = [r for r in earlier if not any(same_run(r, new) for new in made)] + made
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    publish(file, text.getvalue().encode(), overwrite=True)
    table = pairs_table(list(rows))
    click.echo(table)
    publish(out / "pairs.md", table.encode(), overwrite=True)


def same_run(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a row takes the place of another."""
    return all(one[name] == other[name] for name in ("gib", "way", "limit"))


if __name__ == "__main__":
    main()
