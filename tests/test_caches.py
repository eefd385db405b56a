"""Models called with their cache on: it is no output. And what states among the outputs cost."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers as t
from click.testing import CliRunner
from torch import Tensor, nn

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import InputError
from fxrebasin.permutation import Permutation
from fxrebasin.running.outputs import counted
from fxrebasin.storage.checkpoint import save_state_dict
from tests.support.randomise import log10_factorial as f
from tests.support.randomise import randomise

IDS = torch.randint(1, 40, (2, 6), generator=torch.Generator().manual_seed(3))
TOKENS: dict[str, Any] = {"vocab_size": 41, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BOTH_SIDES: dict[str, Any] = {
    **TOKENS,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "decoder_start_token_id": 1,
}


def made(model: Callable[[Any], nn.Module], configuration: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(model(copy.deepcopy(configuration)), seed).eval()


GPT2 = (t.GPT2LMHeadModel, t.GPT2Config(**TOKENS, n_positions=8, n_embd=12, n_layer=1, n_head=3))
LLAMA = (t.LlamaForCausalLM, t.LlamaConfig(**GROUPED))
WINDOW = (t.MistralForCausalLM, t.MistralConfig(**GROUPED, sliding_window=3))
MAMBA = (
    t.MambaForCausalLM,
    t.MambaConfig(**TOKENS, hidden_size=8, num_hidden_layers=1, state_size=3),
)
BART = (t.BartForConditionalGeneration, t.BartConfig(**BOTH_SIDES, max_position_embeddings=12))
WHISPER = (
    t.WhisperForConditionalGeneration,
    t.WhisperConfig(
        **BOTH_SIDES, num_mel_bins=5, max_source_positions=8, max_target_positions=8,
        begin_suppress_tokens=None, suppress_tokens=None,
    ),
)  # fmt: skip
T5 = (
    t.T5ForConditionalGeneration,
    t.T5Config(
        vocab_size=97, d_model=48, num_heads=6, d_kv=8, d_ff=80, num_layers=2,
        decoder_start_token_id=0,
    ),
)  # fmt: skip
DETR = (
    t.DetrForObjectDetection,
    t.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=t.ResNetConfig(
            embedding_size=6, hidden_sizes=[8, 10], depths=[1, 1], layer_type="basic",
            out_features=["stage2"],
        ),
        d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=14, decoder_ffn_dim=15, num_queries=5,
        num_labels=3,
    ),
)  # fmt: skip
SPECTRUM = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(4))
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))

CALLED: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "gpt2": (GPT2, {"input_ids": IDS}, ["logits"]),
    "llama": (LLAMA, {"input_ids": IDS}, ["logits"]),
    "sliding window": (WINDOW, {"input_ids": IDS}, ["logits"]),
    "mamba": (MAMBA, {"input_ids": IDS}, ["logits"]),
    "bart": (BART, {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]},
             ["logits", "encoder_last_hidden_state"]),
    "whisper": (WHISPER, {"input_features": SPECTRUM, "decoder_input_ids": IDS[:, :4]},
                ["logits", "encoder_last_hidden_state"]),
}  # fmt: skip
QUICK = ("gpt2", "llama")


@pytest.mark.parametrize("name", CALLED)
def test_a_cache_is_no_output(name: str) -> None:
    kind, inputs, names = CALLED[name]
    model = made(*kind)
    off = {**inputs, "use_cache": False}
    found = fxrebasin.analyze(model, example_kwargs=inputs)
    assert found.log10_order() == pytest.approx(
        fxrebasin.analyze(model, example_kwargs=off).log10_order()
    )
    with torch.no_grad():
        returned = model(**inputs)
    assert len(returned) > len(names)
    assert list(counted(returned)) == names
    b = made(*kind, seed=1)
    b.load_state_dict(found.random(0).permute_state_dict(model.state_dict()))
    report = fxrebasin.verify(model, b, example_kwargs=inputs)
    assert report.passed
    assert [output.name for output in report.outputs] == names


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CALLED]
)
def test_models_with_their_cache_on_go_through_everything(name: str, tmp_path: Path) -> None:
    kind, inputs, names = CALLED[name]
    a, b = made(*kind), made(*kind, seed=1)
    graph = fxrebasin.transform(b, a, example_kwargs=inputs)
    report = graph.meta["fxrebasin"]
    assert report.certificate == fxrebasin.match(b, a, example_kwargs=inputs)
    assert "the graph leaves out its cache of keys and values" in report.notes
    with torch.no_grad():
        returned = graph(**inputs)
        assert type(returned) is type(b(**inputs))
    assert list(returned) == names
    assert fxrebasin.verify(b, graph, example_kwargs=inputs).passed
    path = tmp_path / "model.onnx"
    assert fxrebasin.export_onnx(b, path, example_kwargs=inputs).passed
    assert fxrebasin.verify(graph, path, example_kwargs=inputs).passed


def test_positional_inputs_and_tuples_have_the_cache_left_out_too() -> None:
    a, b = made(*GPT2), made(*GPT2, seed=1)
    assert fxrebasin.transform(b, a, IDS).meta["fxrebasin"].equivalence.passed
    graph = fxrebasin.transform(b, a, IDS, {"return_dict": False})
    assert [o.name for o in graph.meta["fxrebasin"].equivalence.outputs] == ["0"]
    assert graph(IDS, return_dict=False)[1] is None


def test_a_cache_that_was_passed_in_is_neither_output_nor_changed() -> None:
    model = made(*LLAMA)
    given = t.DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS, past_key_values=given)
    inputs = {"input_ids": IDS[:, :2], "past_key_values": given}
    before = [layer.keys.clone() for layer in given.layers]
    found = fxrebasin.analyze(model, example_kwargs=inputs)
    assert [c for c in found.classes if c.size == 16]  # the residual stream
    report = fxrebasin.verify(model, copy.deepcopy(model), example_kwargs=inputs)
    assert [output.name for output in report.outputs] == ["logits"]
    assert all(map(torch.equal, before, (layer.keys for layer in given.layers)))


class OldCache(nn.Module):
    """Returns keys and values in tuples, as models did before there were classes for it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.k, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        k = torch.relu(self.k(x))
        return {"past_key_values": ((k, k + 1),), "logits": self.out(k)}


def test_caches_count_when_they_are_asked_for() -> None:
    model, x = OldCache(), torch.randn(3, 4)
    assert [c.size for c in fxrebasin.analyze(model, x).classes] == [6]
    graph = fxrebasin.transform(model, model, x)
    assert list(counted(graph(x))) == ["logits"]
    both = ["logits", "past_key_values.0.1"]
    assert fxrebasin.analyze(model, x, outputs=both).classes == ()
    graph = fxrebasin.transform(model, model, x, outputs=both)
    assert [o.name for o in fxrebasin.verify(model, graph, x, outputs=both).outputs] == both[::-1]
    llama = made(*LLAMA)
    keys = ["past_key_values.*.keys"]
    pinned = fxrebasin.analyze(llama, example_kwargs={"input_ids": IDS}, outputs=keys)
    assert not [c for c in pinned.classes if "k_proj.weight[0]" in c.name]
    graph = fxrebasin.apply(llama, pinned.random(0), None, {"input_ids": IDS}, outputs=keys)
    assert list(graph(input_ids=IDS)) == ["past_key_values.layers.0.keys"]


def test_the_command_line_takes_shapes_of_models_with_a_cache(tmp_path: Path) -> None:
    made(*LLAMA).config.save_pretrained(tmp_path)
    configuration = json.loads((tmp_path / "config.json").read_text())
    configuration["architectures"] = ["LlamaForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    for name in "ab":
        save_state_dict(tmp_path / f"{name}.safetensors", made(*LLAMA, seed=ord(name)).state_dict())
    files = [f"--{option}={tmp_path / name}.safetensors" for option, name in
             (("model-b", "b"), ("ref", "a"), ("out", "c"))]  # fmt: skip
    common = ["--input-shape", "input_ids=2,6:int64"]
    done = CliRunner().invoke(main, ["transform", str(tmp_path / "config.json"), *files, *common])
    assert done.exit_code == 0, done.output


# --- what hidden states among the outputs cost ----------------------------------------------------


def attention(heads: int, size: int) -> float:
    """Heads, and in each the dims of queries with keys and of values with the output."""
    return f(heads) + 2 * heads * f(size)


# Of T5: one width, for the sides share their embedding; the heads of all layers of a side, which
# share a bias, and those of each layer that looks at the other side; dims in heads; hidden units.
T5_LOGITS = f(48) + 4 * f(6) + 6 * 12 * f(8) + 4 * f(80)
# Of Whisper: both widths, and that of the first convolution.
WHISPER_LOGITS = 3 * f(16) + 3 * attention(2, 8) + 2 * f(20)
# Of DETR, without its backbone: the encoder's width is pinned by constant positions; the decoder's
# is that of the queries, and once more that of the zeros that it starts from.
DETR_LOGITS = 2 * f(12) + 3 * attention(2, 6) + f(14) + f(15) + 2 * f(12)

STATES: dict[str, tuple[Any, dict[str, Any], list[str], float, float]] = {
    "t5": (T5, {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}, ["logits"],
           T5_LOGITS, f(48)),
    "whisper": (WHISPER, {"input_features": SPECTRUM, "decoder_input_ids": IDS[:, :4]}, ["logits"],
                WHISPER_LOGITS, f(16)),
    "detr": (DETR, {"pixel_values": IMAGE}, ["logits", "pred_*"], DETR_LOGITS, f(12)),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_orders_with_and_without_hidden_states(name: str) -> None:
    kind, inputs, outputs, order, cost = STATES[name]
    model = made(*kind)
    chosen = fxrebasin.analyze(model, example_kwargs=inputs, outputs=outputs)
    everything = fxrebasin.analyze(model, example_kwargs=inputs)
    own = sum(c.count * f(c.size) for c in chosen.classes if "backbone" not in c.name)
    assert own == pytest.approx(order)
    assert chosen.log10_order() - everything.log10_order() == pytest.approx(cost)
    (note,) = [note for note in everything.notes if "goes on with" in note]
    state = "last_hidden_state" if name == "detr" else "encoder_last_hidden_state"
    assert f"with its outputs {state}, and" in note
    assert f"{chosen.log10_order():.4f} instead of {everything.log10_order():.4f}" in note
    assert "others may change" in chosen.notes[-1]
    arrays = {n: np.roll(a, 1, -1) for n, a in chosen.identity().arrays.items()}
    moved = copy.deepcopy(model)
    permutation = Permutation(chosen.classes, arrays, chosen.layout)
    moved.load_state_dict(permutation.permute_state_dict(model.state_dict()))
    assert fxrebasin.verify(model, moved, example_kwargs=inputs, outputs=outputs).passed
    assert not fxrebasin.verify(model, moved, example_kwargs=inputs).passed


def test_the_figures_of_t5() -> None:
    assert pytest.approx(879.5396, abs=1e-4) == T5_LOGITS
    assert T5_LOGITS - f(48) == pytest.approx(818.4457, abs=1e-4)
    with pytest.raises(InputError, match="logits, past_key_values"):
        fxrebasin.analyze(
            made(*T5),
            example_kwargs={"input_ids": IDS, "decoder_input_ids": IDS},
            outputs=["logit"],
        )
