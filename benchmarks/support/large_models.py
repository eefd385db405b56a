"""Stages of the analysis of models at the size that people have them, each in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import fxrebasin
from benchmarks.support.meta import parameters_on_meta
from benchmarks.support.peak_memory import own_peak
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.passes import recognition

_GIB = 2**30
_SHORT = 3.0
_MORE = 3

Subject = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Stages:
    """One analysis in a process of its own: CPU seconds of one thread, GiB that it had at most.

    Short ones are made four times, of which the quickest counts.

    Attributes:
        model: its name.
        parameters: how many numbers it has, in billions.
        classes: that were found.
        log10_order: of the group.
        propagation: seconds of running the model on labels.
        grouping: seconds of solving what was recorded.
        whole: seconds of `analyze`.
        programs: GiB that the process had before, programs and libraries included.
        peak: GiB at the end.
    """

    model: str
    parameters: float
    classes: int
    log10_order: float
    propagation: float
    grouping: float
    whole: float
    programs: float
    peak: float

    @property
    def ratio(self) -> float:
        """Grouping in propagations."""
        return self.grouping / self.propagation


def _vit(side: int) -> Subject:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(side, 16, 12, 12, 768, 3072)
    return model, {"x": torch.empty(2, 3, side, side, device="meta")}


def _llama(width: int, inside: int, layers: int, heads: int) -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width, intermediate_size=inside, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, vocab_size=128256, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": torch.zeros(1, 16, dtype=torch.long)}


def _flux(side: int, words: int) -> Subject:
    """The 12B model of FLUX.1 with guidance, on `side` x `side` patches and a text of `words`."""
    from diffusers import FluxTransformer2DModel

    places = torch.cartesian_prod(torch.zeros(1), *[torch.arange(float(side))] * 2)
    return FluxTransformer2DModel(guidance_embeds=True), {
        "hidden_states": torch.empty(1, side**2, 64, device="meta"),
        "encoder_hidden_states": torch.empty(1, words, 4096, device="meta"),
        "pooled_projections": torch.empty(1, 768, device="meta"),
        "timestep": torch.tensor([0.5]),
        "img_ids": places,
        "txt_ids": torch.zeros(words, 3),
        "guidance": torch.tensor([3.5]),
        "return_dict": False,
    }


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "ViT-B/16, 224 pixels": partial(_vit, 224),
    "ViT-B/16, 448 pixels": partial(_vit, 448),
    "ViT-B/16, 896 pixels": partial(_vit, 896),
    "Llama 8B": partial(_llama, 4096, 14336, 32, 32),
    "Llama 70B": partial(_llama, 8192, 28672, 80, 64),
    "Llama 405B": partial(_llama, 16384, 53248, 126, 128),
    "Flux 12B, 256 patches, 64 words": partial(_flux, 16, 64),
    "Flux 12B, 1024 patches, 512 words": partial(_flux, 32, 512),
}


def measured_apart(name: str) -> Stages:
    """The stages of one model, measured in a process of its own, whose memory is that of its peak.

    Args:
        name: of `SUBJECTS`.
    """
    command = [sys.executable, "-m", __name__, name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Stages(**json.loads(done.stdout.splitlines()[-1]))


def stages_from(row: Mapping[str, str]) -> Stages:
    """What was written to a table.

    Args:
        row: of it.
    """
    figures = {name: float(text) for name, text in row.items() if name not in ("model", "classes")}
    return Stages(model=row["model"], classes=int(row["classes"]), **figures)


@contextmanager
def _stages_timed() -> Iterator[dict[str, float]]:
    """CPU seconds of the stages of an analysis, summed up while this is entered."""
    found = {"propagate": 0.0, "group": 0.0}

    def timing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                found[name] += time.process_time() - began

        return timed

    with (
        patch.object(recognition, "propagate", timing("propagate", recognition.propagate)),
        patch.object(recognition, "group", timing("group", recognition.group)),
    ):
        yield found


def measured(name: str) -> Stages:
    """The stages of one model, in this process, which should not have done anything before.

    Args:
        name: of `SUBJECTS`.
    """
    torch.set_num_threads(1)
    ensure_torchvision()
    small = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4))
    fxrebasin.analyze(small, torch.zeros(2, 4))  # what is imported and made once
    with parameters_on_meta():
        model, inputs = SUBJECTS[name]()
    model.eval()
    before = own_peak() / _GIB
    best = _analysed(name, model, inputs, before)
    for _ in range(_MORE if best.whole < _SHORT else 0):
        again = _analysed(name, model, inputs, before)
        best = again if again.whole < best.whole else best
    return replace(best, peak=own_peak() / _GIB)


def _analysed(name: str, model: nn.Module, inputs: Mapping[str, Any], before: float) -> Stages:
    began = time.process_time()
    with _stages_timed() as seconds:
        symmetry = fxrebasin.analyze(model, example_kwargs=inputs)
    whole = time.process_time() - began
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    figures = seconds["propagate"], seconds["group"], whole, before, own_peak() / _GIB
    return Stages(name, parameters, len(symmetry.classes), symmetry.log10_order(), *figures)


def markdown(rows: Sequence[Stages]) -> str:
    """A page with the table.

    Args:
        rows: of all models.
    """
    lines = [
        "# Stages of the analysis of large models",
        "",
        "CPU seconds of one thread, and GiB, each model in a process of its own and on the meta",
        f"device, torch {torch.__version__}; `python -m benchmarks.analysis --large`. `before`:",
        "what the process had before the analysis, programs and libraries included. The best of",
        "four where one takes less than three seconds.",
        "",
        "| model | parameters | classes | log10 order | propagation | grouping | grouping / "
        "propagation | whole | before | peak |",
        f"|{' --- |' * 10}",
    ]
    for row in rows:
        figures = (row.propagation, row.grouping, row.ratio, row.whole, row.programs, row.peak)
        cells = [row.model, f"{row.parameters:.2f}e9", str(row.classes), f"{row.log10_order:.3f}"]
        lines.append(f"| {' | '.join([*cells, *(f'{figure:.2f}' for figure in figures)])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measured(sys.argv[1]))))
