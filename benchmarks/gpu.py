"""What a GPU changes: one script for the machine that has one; ten minutes at most.

    python -m benchmarks.gpu                      the tests that need a GPU, then the tables
    python -m benchmarks.gpu --device cpu --small what can be run without one

Each model is matched with one that is itself with its units in another order, on the CPU and on the
device; seconds of wall time, fastest of two runs where one takes less than one. Products of
matrices, transfers to the host and assignments are timed apart, each with the device waited for,
so that the whole with timers takes longer than the whole without, which stands beside it. Analysis,
the proof of `verify` and `recalibrate` follow. Writes `<out>/gpu.md`.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import nn

import fxrebasin
from benchmarks.support.randomise import randomise
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.solvers import coordinate_descent, gram
from fxrebasin.storage.files import publish

TESTS = ("tests/test_on_device.py",)
_ENOUGH = 1.0


@dataclass(frozen=True)
class Case:
    """A model and an input of it.

    Args:
        name: of the model.
        make: builds it.
        inputs: of it, on the CPU.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: torch.Tensor


@dataclass(frozen=True)
class Timed:
    """Seconds of one match: its analysis, the whole, and with timers the whole and its parts."""

    analysis: float
    whole: float
    with_timers: float
    products: float
    transfers: float
    assignments: float
    recovered: bool


def cases(*, small: bool) -> list[Case]:
    """A vision transformer, a GPT-2 and a Llama of 1B; or tiny ones."""
    ensure_torchvision()
    from torchvision.models import VisionTransformer
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    def vit() -> nn.Module:
        if small:
            return VisionTransformer(32, 16, 2, 2, 24, 40)
        return VisionTransformer(224, 16, 12, 12, 768, 3072)

    def gpt2() -> nn.Module:
        more = {"bos_token_id": 1, "eos_token_id": 2} if small else {}
        more |= {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 90} if small else {}
        return GPT2LMHeadModel(GPT2Config(use_cache=False, **more))

    def llama() -> nn.Module:
        sizes = (24, 40, 2, 6, 2, 90) if small else (2048, 8192, 16, 32, 8, 128256)
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        names += ("num_key_value_heads", "vocab_size")
        config = dict(zip(names, sizes, strict=True))
        return LlamaForCausalLM(LlamaConfig(use_cache=False, **config))

    side = 32 if small else 224
    tokens = torch.arange(16).view(2, 8)
    return [
        Case("vit_b_16", vit, torch.randn(2, 3, side, side)),
        Case("gpt2", gpt2, tokens),
        Case("llama 1B", llama, tokens),
    ]


@contextmanager
def parts_timed(device: str) -> Iterator[dict[str, float]]:
    """Seconds of what a match consists of, summed up while this is entered."""
    found = {"products": 0.0, "transfers": 0.0, "assignments": 0.0}

    def timing(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            wait(device)
            began = time.perf_counter()
            result = call(*arguments, **options)
            wait(device)
            found[kind] += time.perf_counter() - began
            return result

        return timed

    own = coordinate_descent
    with (
        patch.object(gram, "add_products", timing("products", gram.add_products)),
        patch.object(own, "to_host", timing("transfers", own.to_host)),
        patch.object(own, "clear_order", timing("assignments", own.clear_order)),
        patch.object(own, "best_order", timing("assignments", own.best_order)),
        patch.object(own, "match_pairs", timing("assignments", own.match_pairs)),
    ):
        yield found


def wait(device: str) -> None:
    """Until the device has done what it was told to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """Of some work, the fastest of two runs if one is short; and what it came to."""
    best = float("inf")
    for _ in range(2):
        wait(device)
        began = time.perf_counter()
        result = work()
        wait(device)
        took = time.perf_counter() - began
        best = min(best, took)
        if took > _ENOUGH:
            break
    return best, result


def matched(case: Case, device: str) -> Timed:
    """A model and itself in another order, matched on a device."""
    torch.manual_seed(0)
    a = case.make().eval().to(device)
    inputs = case.inputs.to(device)
    planted = fxrebasin.analyze(a, inputs).random(1)
    b = case.make().eval().to(device)
    b.load_state_dict(planted.permute_state_dict(a.state_dict()))

    def match() -> fxrebasin.Permutation:
        return fxrebasin.match(b, ref=a, example_inputs=inputs)

    analysis, _ = seconds(device, lambda: fxrebasin.analyze(a, inputs))
    whole, found = seconds(device, match)
    with parts_timed(device) as parts:
        began = time.perf_counter()
        match()
        timed = time.perf_counter() - began
    moved = found.permute_state_dict(b.state_dict())
    same = all(torch.equal(moved[name], t) for name, t in a.state_dict().items())
    return Timed(analysis, whole, timed, *parts.values(), same)


def batch_normed(*, small: bool) -> nn.Module:
    """A network with BatchNorm."""
    if small:
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        )
    ensure_torchvision()
    from torchvision.models import resnet18

    net: nn.Module = resnet18()
    return net


def others(device: str, *, small: bool) -> dict[str, float]:
    """Seconds of analysis, of a proof, and of recalibration, on a network with BatchNorm."""
    side = 16 if small else 224
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    net = batch_normed(small=small)
    randomise(net, (images,), 0)
    images = images.to(device)
    net = net.to(device)
    planted = fxrebasin.analyze(net, images).random(1)
    other = batch_normed(small=small).eval().to(device)
    other.load_state_dict(planted.permute_state_dict(net.state_dict()))
    work: Mapping[str, Callable[[], Any]] = {
        "analyze": lambda: fxrebasin.analyze(net, images),
        "verify": lambda: fxrebasin.verify(net, other, example_inputs=images),
        "recalibrate": lambda: fxrebasin.recalibrate(net, [images] * 4),
    }
    return {name: seconds(device, call)[0] for name, call in work.items()}


def tables(devices: list[str], *, small: bool) -> str:
    """All of it, for people."""
    name = torch.cuda.get_device_name() if "cuda" in devices else "no GPU"
    lines = [
        "# Matching and the rest, on the CPU and on a GPU",
        "",
        f"{name}; {torch.get_num_threads()} threads; torch {torch.__version__}. Seconds of wall",
        "time; parts with the device waited for.",
        "",
        "| model | device | analysis | whole | with timers | products | transfers | assignments "
        "| recovered bit for bit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases(small=small):
        for device in devices:
            found = matched(case, device)
            times = (found.analysis, found.whole, found.with_timers)
            parts = (found.products, found.transfers, found.assignments)
            cells = [f"{t:.3f}" for t in (*times, *parts)]
            lines.append(f"| {case.name} | {device} | {' | '.join(cells)} | {found.recovered} |")
            click.echo(lines[-1])
            gc.collect()
    lines += ["", "| resnet18 | " + " | ".join(devices) + " |", "| --- " * (len(devices) + 1) + "|"]
    rows = [others(device, small=small) for device in devices]
    for what in rows[0]:
        lines.append(f"| {what} | " + " | ".join(f"{row[what]:.3f}" for row in rows) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Tiny models, to try the script itself.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/gpu"))
def main(device: str, small: bool, out: Path) -> None:
    """Run the tests, measure, print, and write the tables."""
    if device == "cuda":
        if not torch.cuda.is_available():
            raise click.UsageError("there is no GPU here; --device cpu runs what needs none")
        subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], check=True)
    devices = ["cpu"] if device == "cpu" else ["cpu", "cuda"]
    text = tables(devices, small=small)
    click.echo(text)
    publish(out / "gpu.md", text.encode(), overwrite=True)


if __name__ == "__main__":
    main()
