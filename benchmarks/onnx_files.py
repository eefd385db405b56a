"""CPU seconds from an ONNX file to a permuted one, stage by stage.

    python -m benchmarks.onnx_files [MODEL ...]

Each file is read, analysed, permuted at random and written, three times. The first run is that of a
process that has just imported what it needs; the least is what is left when torch has seen the
operators. The proof, which runs the model in float64, is measured apart. Written to
`benchmarks/results/onnx_files/results.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from fxrebasin.importers.onnx.finding import find
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.permuting import permuted
from fxrebasin.models.library_imports import import_library
from fxrebasin.terminal import output_console

RESULT = Path(__file__).parent / "results" / "onnx_files" / "results.json"
_REPEATS = 3


def _resnet() -> tuple[nn.Module, tuple[Any, ...]]:
    models: Any = import_library("torchvision.models")
    return models.resnet50(), (torch.randn(1, 3, 224, 224),)


def _vit() -> tuple[nn.Module, tuple[Any, ...]]:
    timm: Any = import_library("timm")
    model = timm.create_model("vit_small_patch16_224", pretrained=False)
    return model, (torch.randn(1, 3, 224, 224),)


def _gpt2() -> tuple[nn.Module, tuple[Any, ...]]:
    transformers: Any = import_library("transformers")
    config = transformers.GPT2Config(n_layer=6, vocab_size=20000, use_cache=False)
    model = transformers.GPT2LMHeadModel(config)
    return model, (torch.randint(0, 20000, (1, 12)),)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "resnet50": _resnet,
    "vit_small_patch16_224": _vit,
    "gpt2, 6 layers": _gpt2,
}


@contextmanager
def _measured(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.process_time()
    yield
    seconds[stage] = round(time.process_time() - began, 3)


def stages(path: Path, out: Path) -> dict[str, float]:
    """CPU seconds of each stage."""
    seconds: dict[str, float] = {}
    with _measured(seconds, "read"):
        source = read(path)
    with _measured(seconds, "analyze"):
        found = find(source)
    with _measured(seconds, "permute"):
        result = permuted(source, found.runs, found.symmetry.random(seed=0))
    with _measured(seconds, "write"), result.drafted(out, overwrite=True):
        pass
    seconds["together"] = round(sum(seconds.values()), 3)
    with _measured(seconds, "prove"):
        result.prove_file(out, result.check_interpreter())
    return seconds


def measure(names: list[str]) -> dict[str, dict[str, Any]]:
    """Figures by model."""
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model, inputs = MODELS[name]()
            path = Path(folder) / "model.onnx"
            torch.onnx.export(
                *(model.eval(), inputs, path),
                **{"dynamo": True, "verbose": False, "external_data": False},
            )
            runs = [stages(path, Path(folder) / "out.onnx") for _ in range(_REPEATS)]
            figures[name] = {"megabytes": path.stat().st_size >> 20, "first": runs[0]}
            figures[name]["least"] = {key: min(run[key] for run in runs) for key in runs[0]}
    return figures


def main() -> None:
    """Measure, print a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    names = parser.parse_args().models or list(MODELS)
    figures = measure(names)
    stages_of = list(figures[names[0]]["least"])
    table = Table("model", "MB", "run", *stages_of, title="CPU seconds")
    for name, found in figures.items():
        for run in ("first", "least"):
            cells = (f"{found[run][stage]:.2f}" for stage in stages_of)
            table.add_row(name, str(found["megabytes"]), run, *cells)
    output_console().print(table)
    if names == list(MODELS):
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
