"""`recalibrate` and `repair` with batches side by side, in memory and in a file, or layer by layer.

    python -m benchmarks.recalibration [MODEL ...]

Each runs over four batches of eight images, with memory for all of them, with room for them in a
temporary file, and with neither, and is given in forward passes over the same batches, measured in
the same process. Passes over the loader are counted. Each call is written to
`benchmarks/results/recalibration/results.json` when it was measured; what was measured before stays
there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.table import Table
from torch import nn

import fxrebasin
from fxrebasin.merge import sweeps
from fxrebasin.models.library_imports import import_library
from fxrebasin.terminal import output_console

RESULT = Path(__file__).parent / "results" / "recalibration" / "results.json"
MODELS = ("resnet18", "resnet50", "mobilenet_v2")
_SIZE = 32
WAYS = ("side by side", "in a file", "layer by layer")


class Loader:
    """Four batches, and how often they were gone through."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._batches = [torch.randn(8, 3, _SIZE, _SIZE, generator=generator) for _ in range(4)]
        self.passes = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes += 1
        return iter(self._batches)


def _spent(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _measured(call: Callable[[Loader], nn.Module]) -> dict[str, Any]:
    """CPU seconds and passes in each way, and by how much results differ at most."""
    found: dict[str, Any] = {}
    states = []
    for way in WAYS:
        loader, made = Loader(), list[nn.Module]()
        with _with_room(way):
            seconds = _spent(lambda made=made, loader=loader: made.append(call(loader)))
        found[way] = {"seconds": seconds, "passes": loader.passes}
        states.append(made[0].state_dict())
    differences = [
        float((left - right).abs().max() / right.abs().max().clamp_min(1e-30))
        for other in states[1:]
        for left, right in zip(states[0].values(), other.values(), strict=True)
        if left.is_floating_point()
    ]
    return {**found, "difference": max(differences)}


@contextmanager
def _with_room(way: str) -> Iterator[None]:
    """Room in memory, in a file only, or nowhere."""
    with ExitStack() as stack:
        if way != WAYS[0]:
            stack.enter_context(patch.object(sweeps, "MOST_HELD", 0))
        if way == WAYS[2]:
            stack.enter_context(patch.object(sweeps, "room_for_overflow", lambda: 0))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # that there is none
        yield


def measure(name: str) -> Iterator[dict[str, Any]]:
    """One model: what is known of it, after each call.

    Args:
        name: in torchvision.
    """
    library: Any = import_library("torchvision.models")
    torch.manual_seed(0)
    a, b = (getattr(library, name)(num_classes=10).eval() for _ in "ab")
    middle = [*fxrebasin.interpolate(a, b, steps=3)][1]
    with torch.no_grad():
        middle(next(iter(Loader())))
        forward = _spent(lambda: [middle(batch) for batch in Loader()])
    result: dict[str, Any] = {"model": name, "forward": forward}
    calls: dict[str, Callable[[Loader], nn.Module]] = {
        "recalibrate": lambda loader: fxrebasin.recalibrate(middle, loader),
        "repair": lambda loader: fxrebasin.repair(middle, a, b, loader),
    }
    for call, work in calls.items():
        result = {**result, call: _measured(work)}
        yield result


def _kept() -> dict[str, dict[str, Any]]:
    """What was measured before, by model."""
    found = json.loads(RESULT.read_text("utf-8")) if RESULT.is_file() else []
    return {result["model"]: result for result in found}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    results = _kept()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().models:
        for result in measure(name):
            results[name] = result
            RESULT.write_text(json.dumps([*results.values()], indent=2) + "\n", "utf-8")
    table = Table(title="forward passes over four batches (passes over the loader)")
    for heading in ("model", "call", *WAYS, "difference"):
        table.add_column(heading)
    for result in results.values():
        for call in ("recalibrate", "repair"):
            found = result[call]
            shown = [
                f"{found[way]['seconds'] / result['forward']:.1f} ({found[way]['passes']})"
                for way in WAYS
            ]
            table.add_row(result["model"], call, *shown, f"{found['difference']:.1e}")
    output_console().print(table)


if __name__ == "__main__":
    main()
