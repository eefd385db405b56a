"""What `transform` takes, stage by stage, and how much memory the command does.

    python -m benchmarks.proving [MODEL ...]           seconds of the stages
    python -m benchmarks.proving --memory [MODEL ...]  memory of the command

The floor of `verify` is two forward passes in float64 of four rows, on a model that is in float64
already, and one read of the parameters. CPU seconds of one thread, the least of several rounds.
Two models with random weights are matched, so that every class has a permutation of its own. Rows
are of a batch of 32.

The command runs in a process of its own, on two files of weights in float32 and in bfloat16; what
it has at most is given in checkpoints, with what the same command takes for a small model taken
off: without files that are mapped (libraries, and the checkpoints while they are read), and with
them, which the system takes back when it needs them. Rows are added to `<out>/stages.csv` and
`memory.csv`; `proving.md` is written anew from there.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import fxrebasin
from benchmarks.support.peak_memory import peaks_of
from fxrebasin.models.library_imports import import_library
from fxrebasin.passes.rewrite import rewrite
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.passes.trace.trace import trace
from fxrebasin.proof import prove_bits, prove_graph
from fxrebasin.storage.files import publish
from fxrebasin.terminal import output_console

OUT = Path(__file__).parent / "results" / "proving"
MODELS = ("resnet18", "densenet121", "vit_b_16")
SMALL = "squeezenet1_1"
_ROWS = 32
_MIB = 2**20

Row = dict[str, str]


def main() -> None:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="of which the least seconds count")
    parser.add_argument("--memory", action="store_true", help="of the command, instead of seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        if arguments.memory:
            for dtype in (torch.float32, torch.bfloat16):
                _add("memory", _memory(name, dtype), ("model", "dtype"))
        else:
            stages = [_stages(name, arguments.size) for _ in range(arguments.rounds)]
            least = {stage: min(round[stage] for round in stages) for stage in stages[0]}
            ratio = least["verify"] / least["floor"]
            shown = {stage: f"{seconds:.2f}" for stage, seconds in least.items()}
            row = {"model": name, **shown, "verify / floor": f"{ratio:.2f}"}
            _add("stages", row, ("model",))
    publish(OUT / "proving.md", _page().encode(), overwrite=True)
    output_console().print(_page(), markup=False)


def _stages(name: str, size: int) -> dict[str, float]:
    """Seconds of each stage, and of the floor of the last."""
    models: Any = import_library("torchvision.models")
    model, other = (getattr(models, name)().eval() for _ in "ba")
    images = torch.randn(_ROWS, 3, size, size)
    call = ((images,), dict[str, Any]())
    traced, tracing = _timed(lambda: trace(model, *call))
    _, analysis = _timed(lambda: fxrebasin.analyze(model, images))
    order, both = _timed(lambda: fxrebasin.match(model, ref=other, example_inputs=images))
    result, rewriting = _timed(lambda: rewrite(model, order, *call, traced=traced))
    _, proof = _timed(lambda: prove_graph(model, traced, result, order, call))
    state = named_state(model)
    _, exact = _timed(lambda: prove_bits(state, named_state(result), order))
    gc.collect()
    return {
        "trace": tracing,
        "analyze": analysis,
        "match": max(0.0, both - analysis),
        "rewrite": rewriting,
        "verify": proof,
        "exact only": exact,
        "floor": _floor(model, images[:4].double()),
    }


@torch.no_grad()
def _floor(model: nn.Module, images: torch.Tensor) -> float:
    wide = copy.deepcopy(model).double()
    _, running = _timed(lambda: [wide(images) for _ in "ab"])
    _, reading = _timed(lambda: [tensor.clone() for tensor in model.state_dict().values()])
    return running + reading


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return call(), time.process_time() - began


def _memory(name: str, dtype: torch.dtype) -> Row:
    """What the command has in memory at most, beside the size of a checkpoint."""
    whole, peak, size = _command(name, dtype)
    small_whole, small, _ = _command(SMALL, dtype)
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "checkpoint, MiB": f"{size / _MIB:.0f}",
        "small model, MiB": f"{small / _MIB:.0f}",
        "peak, MiB": f"{peak / _MIB:.0f}",
        "checkpoints": f"{(peak - small) / size:.1f}",
        "with mapped files": f"{(whole - small_whole) / size:.1f}",
    }


def _command(name: str, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of the command at most, with and without mapped files, and of one checkpoint."""
    models: Any = import_library("torchvision.models")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for side in "ab":
            state = getattr(models, name)().state_dict()
            wide = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
            save_file(wide, folder / f"{side}.safetensors")
        given = ["transform", f"torchvision:{name}", "--model-b", str(folder / "b.safetensors")]
        given += ["--ref", str(folder / "a.safetensors"), "--out", str(folder / "o.safetensors")]
        command = [sys.executable, "-m", "fxrebasin", *given, "--input-shape", "1,3,224,224"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        whole, peak = peaks_of(process)
        if process.returncode:
            raise SystemExit(f"the command failed with {process.returncode}: {' '.join(given)}")
        return whole, peak, (folder / "a.safetensors").stat().st_size


def _add(table: str, row: Row, keys: Sequence[str]) -> None:
    """Put a row into a table, in the place of that of the same name, or behind the others."""
    known = {tuple(old[key] for key in keys): old for old in _rows(table)}
    known[tuple(row[key] for key in keys)] = row
    text = io.StringIO()
    writer = csv.DictWriter(text, [*row], lineterminator="\n")
    writer.writeheader()
    writer.writerows(known.values())
    publish(OUT / f"{table}.csv", text.getvalue().encode(), overwrite=True)


def _rows(table: str) -> list[Row]:
    path = OUT / f"{table}.csv"
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8")))) if path.is_file() else []


def _page() -> str:
    """Both tables, for people."""
    return "\n".join(
        [
            "# Stages of `transform`, and memory of the command",
            "",
            f"CPU seconds of one thread, torch {torch.__version__}, two cores that others used at",
            "the same time: `python -m benchmarks.proving`. Rows are of a batch of "
            f"{_ROWS} with 224 pixels.",
            "`floor`: two float64 forward passes of four rows, and a read of the parameters.",
            "",
            *_table(_rows("stages")),
            "",
            "What the command has in memory at most, without mapped files; and the same, less that",
            f"of a small model ({SMALL}), in checkpoints: `python -m benchmarks.proving --memory`.",
            "",
            *_table(_rows("memory")),
            "",
        ]
    )


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return ["Not measured."]
    lines = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    return [*lines, *(f"| {' | '.join(row.values())} |" for row in rows)]


if __name__ == "__main__":
    main()
