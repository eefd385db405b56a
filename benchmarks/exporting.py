"""What `export_onnx` takes beside plain `torch.onnx.export(dynamo=True)`: CPU time and peak memory.

    python -m benchmarks.exporting [MODEL ...]

Each run is a process of its own, which exports something small first, so that imports do not count.
CPU seconds are those of the export of the model; memory is the peak above what the process had with
the model in it, in units of the weights, and means something where these are large ("wide").
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from fxrebasin.models.library_imports import import_library
from fxrebasin.terminal import output_console

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _image(name: str) -> Call:
    models: Any = import_library("torchvision.models")
    return getattr(models, name)(num_classes=10), (torch.randn(2, 3, 64, 64),), {}


def _text(model: str, config: str, **sizes: Any) -> Call:
    transformers: Any = import_library("transformers")
    net = getattr(transformers, model)(getattr(transformers, config)(vocab_size=50, **sizes))
    ids = torch.arange(16).view(2, 8)
    mask = torch.ones_like(ids)
    return net, (), {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def _gpt2() -> Call:
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    return _text("GPT2LMHeadModel", "GPT2Config", **sizes)


def _gru() -> Call:
    return nn.GRU(8, 16, num_layers=2, batch_first=True), (torch.randn(2, 12, 8),), {}


def _wide() -> Call:
    layers = [layer for _ in range(5) for layer in (nn.Linear(3072, 3072), nn.ReLU())]
    return nn.Sequential(*layers), (torch.randn(2, 3072),), {}


MODELS: dict[str, Callable[[], Call]] = {
    "resnet18": lambda: _image("resnet18"),
    "squeezenet1_1": lambda: _image("squeezenet1_1"),
    "gpt2": _gpt2,
    "gru": _gru,
    "wide": _wide,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--measure", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(_measure(arguments.models[0], arguments.measure)) + "\n")
        return
    table = Table("", "CPU s", "plain", "of plain's", "memory", "plain's")
    for name in arguments.models:
        ours, plain = _in_a_process(name, "ours"), _in_a_process(name, "plain")
        table.add_row(
            name,
            f"{ours['cpu']:.1f}",
            f"{plain['cpu']:.1f}",
            f"{ours['cpu'] / plain['cpu']:.1f}",
            f"{ours['memory']:.1f}",
            f"{plain['memory']:.1f}",
        )
    output_console().print(table)


def _in_a_process(name: str, kind: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.exporting", name, "--measure", kind]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return measured


def _measure(name: str, kind: str) -> dict[str, float]:
    export = _ours if kind == "ours" else _plain
    with tempfile.TemporaryDirectory() as folder:
        export(nn.Linear(3, 2), (torch.randn(2, 3),), {}, Path(folder) / "small.onnx")
        model, args, kwargs = MODELS[name]()
        weights = sum(parameter.nbytes for parameter in model.parameters())
        before, began = _peak(), time.process_time()
        export(model.eval(), args, kwargs, Path(folder) / "model.onnx")
        spent = time.process_time() - began
        return {"cpu": spent, "memory": (_peak() - before) / weights}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _ours(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> None:
    import fxrebasin

    fxrebasin.export_onnx(model, path, args, kwargs)


def _plain(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> None:
    torch.onnx.export(model, args, str(path), kwargs=kwargs, dynamo=True, verbose=False)


if __name__ == "__main__":
    main()
