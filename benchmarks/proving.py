"""What the proof inside `transform` takes, beside the least that running both models takes.

    python -m benchmarks.proving [MODEL ...]

The floor is two forward passes in float64 of four rows, on a model that is in float64 already, and
a copy of the parameters. CPU seconds of one thread; weight matching is left out: the permutation is
drawn. Rows are of a batch of 32.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import nn

import fxrebasin
from fxrebasin.models.library_imports import import_library
from fxrebasin.passes.rewrite import rewrite
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.passes.trace.trace import trace
from fxrebasin.proof import prove_bits, prove_graph
from fxrebasin.terminal import output_console

_ROWS = 32


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["resnet18", "densenet121", "vit_b_16"])
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("trace", "analyze", "rewrite", "verify", "exact only", "floor", "verify / floor")
    table = Table("CPU seconds", *columns)
    for name in arguments.models:
        stages, floor = _measured(name, arguments.size)
        cells = [f"{seconds:.2f}" for seconds in (*stages.values(), floor)]
        table.add_row(name, *cells, f"{stages['verify'] / floor:.2f}")
    output_console().print(table)


def _measured(name: str, size: int) -> tuple[dict[str, float], float]:
    models: Any = import_library("torchvision.models")
    model: nn.Module = getattr(models, name)().eval()
    images = torch.randn(_ROWS, 3, size, size)
    call = ((images,), dict[str, Any]())
    traced, tracing = _timed(lambda: trace(model, *call))
    symmetry, analysis = _timed(lambda: fxrebasin.analyze(model, images))
    order = symmetry.random(seed=0)
    result, rewriting = _timed(lambda: rewrite(model, order, *call, traced=traced))
    _, proof = _timed(lambda: prove_graph(model, traced, result, order, call))
    state = named_state(model)
    _, exact = _timed(lambda: prove_bits(state, named_state(result), order))
    stages = {
        "trace": tracing,
        "analyze": analysis,
        "rewrite": rewriting,
        "verify": proof,
        "exact": exact,
    }
    return stages, _floor(model, images[:4].double())


@torch.no_grad()
def _floor(model: nn.Module, images: torch.Tensor) -> float:
    wide = copy.deepcopy(model).double()
    _, running = _timed(lambda: [wide(images) for _ in "ab"])
    _, reading = _timed(lambda: [tensor.clone() for tensor in model.state_dict().values()])
    return running + reading


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return call(), time.process_time() - began


if __name__ == "__main__":
    main()
