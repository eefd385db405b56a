"""How much memory re-basing an ONNX file towards another one takes.

    python -m benchmarks.onnx_memory [MODEL ...]

Two files of a model with random weights are written in a process of their own, with the weights in
the files or beside them. A further process re-bases something small, so that imports do not count,
and then one of the files. Memory is the peak above what it had before, in units of the weights of
one file: without pages of mapped files, which the system takes back when it needs them, and with
them. Written to `benchmarks/results/onnx_files/memory.md`, unless models are named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

import fxrebasin
from benchmarks.support.equivalence_models import build
from benchmarks.support.peak_memory import growth_of, own_peak, own_without_files
from fxrebasin.running.freed import give_back_memory
from fxrebasin.storage.files import publish

MODELS = ("resnet50", "vit_b_16")
RESULT = Path(__file__).parent / "results" / "onnx_files" / "memory.md"
_FORMS = ("in the file", "beside it")
_IMAGES = 96  # pixels a side, where a model takes so few
_SMALL = (
    '<ir_version: 8, opset_import: [ "" : 17 ]> g (float[n,2] x) => (float[n,1] y)'
    " <float[2,3] a = {1,2,3,4,5,6}, float[3,1] b = {7,8,9}>"
    " { h = MatMul(x, a) i = Relu(h) y = MatMul(i, b) }"
)


def main() -> None:
    """Measure, print a table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rebase", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.models[0], arguments.write)
    elif arguments.rebase:
        sys.stdout.write(json.dumps(rebase(arguments.rebase)) + "\n")
    else:
        found = table(measure(arguments.models))
        sys.stdout.write(found)
        if tuple(arguments.models) == MODELS:
            publish(RESULT, found.encode(), overwrite=True)


def measure(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of the table."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(_command(name, "--write", folder), check=True, capture_output=True)
            for form in _FORMS:
                found = growth_of(_command(name, "--rebase", str(Path(folder) / form)))
                weights = found["weights"]
                yield {
                    "model": name,
                    "weights, MB": f"{weights / 1e6:.1f}",
                    "weights are": form,
                    "peak": f"{found['own'] / weights:.2f}",
                    "with mapped pages": f"{found['memory'] / weights:.2f}",
                    "CPU s": f"{found['cpu']:.0f}",
                }


def table(rows: Iterator[dict[str, str]]) -> str:
    """The rows in Markdown."""
    lines = ["Made by `python -m benchmarks.onnx_memory`; memory in units of the weights.", ""]
    for at, row in enumerate(rows):
        if not at:
            lines += [f"| {' | '.join(row)} |", "| --- " * len(row) + "|"]
        lines.append(f"| {' | '.join(row.values())} |")
    return "\n".join(lines) + "\n"


def _command(name: str, what: str, place: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.onnx_memory", name, what, place]


def write(name: str, folder: Path) -> None:
    """Two files of a model, in both forms.

    Args:
        name: of the model.
        folder: gets a folder for each form.
    """
    for form in _FORMS:
        (folder / form).mkdir()
    for letter, seed in (("a", 1), ("b", 2)):
        subject = build(name, _IMAGES, seed)
        inside, beside = (folder / form / f"{letter}.onnx" for form in _FORMS)
        fxrebasin.export_onnx(subject.model, inside, subject.args)
        options: dict[str, Any] = {"save_as_external_data": True, "location": f"{letter}.data"}
        onnx.save(onnx.load(inside), beside, **options)


def rebase(folder: Path) -> dict[str, float]:
    """CPU seconds, the weights, and what the process had before it began."""
    torch.set_num_threads(1)
    model = onnx.parser.parse_model(_SMALL)
    fxrebasin.onnx_transform(model, ref=model, out=folder / "small.onnx")
    give_back_memory()
    weights = sum(item.stat().st_size for item in folder.glob("b.*"))
    peak, without_files, began = own_peak(), own_without_files(), time.process_time()
    fxrebasin.onnx_transform(folder / "b.onnx", ref=folder / "a.onnx", out=folder / "out.onnx")
    spent = time.process_time() - began
    return {"cpu": spent, "weights": weights, "peak": peak, "own": without_files}


if __name__ == "__main__":
    main()
