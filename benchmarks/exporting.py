"""What `export_onnx` takes beside plain `torch.onnx.export(dynamo=True)`: CPU time and peak memory.

    python -m benchmarks.exporting [MODEL ...]

Each run is a process of its own with one thread (threads that wait for each other take CPU time as
well), which exports something small first, so that imports and the code of libraries do not count.
CPU seconds are those of the export of the model: by default, which finds and proves dynamic axes,
and with the sizes of the example only. Plain exports have the sizes of the example, and nothing is
proved. Memory is the peak above what the process had with the model in it, in units of the weights,
or in MB where these are small ("large" has 2.3 GB and is only run when named). The figure in
brackets is without pages of mapped files, which the system takes back when it needs them:
onnxruntime reads the weights from the file itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

import fxrebasin
from benchmarks.support.peak_memory import growth_of, own_peak, own_without_files
from fxrebasin.models.library_imports import import_library
from fxrebasin.terminal import output_console

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _image(name: str, size: int = 64) -> Call:
    models: Any = import_library("torchvision.models")
    return getattr(models, name)(num_classes=10), (torch.randn(2, 3, size, size),), {}


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


class _UNet(nn.Module):
    """Two steps down and two up, with what was there before beside it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second = _block(3, width), _block(width, 2 * width)
        self.middle = _block(2 * width, 4 * width)
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.third = _block(4 * width, 2 * width)
        self.up_again = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = nn.Sequential(_block(2 * width, width), nn.Conv2d(width, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        x = self.up(self.middle(F.max_pool2d(second, 2)))
        x = self.up_again(self.third(torch.cat([x, second], 1)))
        made: torch.Tensor = self.last(torch.cat([x, first], 1))
        return made


def _block(inner: int, outer: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inner, outer):
        layers += [nn.Conv2d(width, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(True)]
    return nn.Sequential(*layers)


def _wide(width: int = 3072, count: int = 5) -> Call:
    layers = [layer for _ in range(count) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers), (torch.randn(2, width),), {}


MODELS: dict[str, Callable[[], Call]] = {
    "resnet18": lambda: _image("resnet18"),
    "vit_b_16": lambda: _image("vit_b_16", 224),
    "gru": _gru,
    "unet": lambda: (_UNet(), (torch.randn(2, 3, 32, 32),), {}),
    "gpt2": _gpt2,
    "wide": _wide,
    "large": lambda: _wide(4096, 35),
}
_ONLY_IF_NAMED = ("large",)
_SMALL = 10_000_000  # bytes


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    usual = [name for name in MODELS if name not in _ONLY_IF_NAMED]
    parser.add_argument("models", nargs="*", default=usual)
    parser.add_argument("--measure", choices=list(_EXPORTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(_measure(arguments.models[0], arguments.measure)) + "\n")
        return
    columns = ("weights, MB", "CPU s: plain", "fixed", "of plain", "default", "of plain")
    table = Table("", *columns, "memory: plain", "fixed", "default")
    for name in arguments.models:
        plain, fixed, default = (growth_of(_command(name, kind)) for kind in _EXPORTS)
        cpu = [f"{plain['weights'] / 1e6:.3g}", f"{plain['cpu']:.1f}"]
        for ours in (fixed, default):
            cpu += [f"{ours['cpu']:.1f}", f"{ours['cpu'] / plain['cpu']:.2f}"]
        table.add_row(name, *cpu, *map(_memory, (plain, fixed, default)))
    output_console().print(table)


def _memory(run: dict[str, float]) -> str:
    """In units of the weights; in MB where these are next to nothing."""
    unit, name = (run["weights"], "") if run["weights"] > _SMALL else (1e6, " MB")
    peak, without_files = (f"{run[key] / unit:.{0 if name else 2}f}" for key in ("memory", "own"))
    return f"{peak}{name} ({without_files})"


def _command(name: str, kind: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.exporting", name, "--measure", kind]


def _measure(name: str, kind: str) -> dict[str, float]:
    """CPU seconds, and what the process had before it began."""
    torch.set_num_threads(1)
    export = _EXPORTS[kind]
    with tempfile.TemporaryDirectory() as folder:
        export(_small(), (torch.randn(2, 3, 8, 8),), {}, Path(folder) / "small.onnx")
        model, args, kwargs = MODELS[name]()
        weights = sum(parameter.nbytes for parameter in model.parameters())
        peak, without_files, began = own_peak(), own_without_files(), time.process_time()
        export(model.eval(), args, kwargs, Path(folder) / "model.onnx")
        spent = time.process_time() - began
    return {"cpu": spent, "weights": weights, "peak": peak, "own": without_files}


def _small() -> nn.Module:
    pooled = nn.Sequential(_block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(pooled, nn.LayerNorm(4), nn.Linear(4, 2))


def _plain(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> None:
    torch.onnx.export(model, args, str(path), kwargs=kwargs, dynamo=True, verbose=False)


def _fixed(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> None:
    fxrebasin.export_onnx(model, path, args, kwargs, dynamic_batch=False)


def _default(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> None:
    fxrebasin.export_onnx(model, path, args, kwargs)


_EXPORTS = {"plain": _plain, "fixed": _fixed, "default": _default}


if __name__ == "__main__":
    main()
