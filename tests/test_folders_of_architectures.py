"""Folders of transformers' architectures: saved, aligned by the command, loaded; same outputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers
from safetensors import safe_open

from fxrebasin.permutation import Permutation
from tests.support.commands import invoke
from tests.support.randomise import difference, outputs, randomise
from tests.support.text_models import TEXT
from tests.support.vision_models import VISION


def convnext(attention: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    return transformers.ConvNextForImageClassification(config).eval(), {"pixel_values": pixels}


MODELS = {**TEXT, **VISION, "convnext": convnext}
KIND = {"bloom": "eager", "deberta-v2": "eager", "detr": "eager", "mamba": "eager"}
# What takes seconds and goes through nothing that the others do not.
LONG = (
    "detr",
    "bert for classes",
    "falcon",
    "phi3",
    "qwen3",
    "qwen3-moe",
    "gemma3",
    "dinov2 with gates",
)
NEED_SHAPES = ("clip", "siglip", "whisper")  # of inputs that cannot be inferred
FLOAT32 = 1e-4


def shape(name: str, value: torch.Tensor) -> str:
    """An input as --input-shape has it."""
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{name}={','.join(map(str, value.shape))}:{dtype}"


def tensors(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The tensors of a folder by their names in the file."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        found = {name: file.get_tensor(name) for name in names}
    return {name: (found[name].dtype, tuple(found[name].shape)) for name in names}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in MODELS]
)
def test_what_is_written_is_what_was_read_with_units_in_another_order(name: str, tmp_path: Path):
    built, inputs = MODELS[name](KIND.get(name, "sdpa"))
    models: dict[str, Any] = {}
    for seed, letter in enumerate("ab"):
        models[letter] = randomise(copy.deepcopy(built), seed).eval()
        models[letter].save_pretrained(tmp_path / letter)
    kind: Any = type(built)

    out, certificate = tmp_path / "out", tmp_path / "certificate.safetensors"
    shapes = [f"--input-shape={shape(key, value)}" for key, value in inputs.items()]
    invoke(
        *("transform", tmp_path / "b", "--ref", tmp_path / "a", "--out", out),
        *("--certificate", certificate, *(shapes if name in NEED_SHAPES else ())),
    )
    permutation = Permutation.load(certificate)

    back, loading = kind.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    assert difference(compared(models["b"], inputs), compared(back, inputs)) < FLOAT32
    own = models["b"].state_dict()
    expected = permutation.permute_state_dict(own)
    assert all(tensor.equal(expected[key]) for key, tensor in back.state_dict().items())
    assert any(not tensor.equal(own[key]) for key, tensor in expected.items())
    assert tensors(out) == tensors(tmp_path / "b")
    written = {p.name for p in (tmp_path / "b").iterdir()} | {"README.md"}
    assert {p.name for p in out.iterdir()} == written
    for file in ("config.json", "generation_config.json"):
        if (out / file).exists():
            assert (out / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def compared(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """The outputs, without caches, whose heads may be in another order."""
    config: Any = model.config
    config.use_cache = False
    return outputs(model, (), inputs)
