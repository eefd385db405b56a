"""A decoder's file with its cache as inputs and outputs generates the text that the model does."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers as hf
from click.testing import CliRunner
from torch import nn

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx.export import export_onnx
from tests.support.small_nets import Attention, unsettled

IDS = torch.tensor([[5, 9, 12, 7], [8, 3, 20, 11]])


def gpt2() -> nn.Module:
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, bos_token_id=1, eos_token_id=2, **sizes))


def llama(**more) -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=50, **sizes, **heads, **more))


def gemma3() -> nn.Module:
    """Layers that see the last four tokens, and others that see all."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 8}
    kinds = ["sliding_attention", "full_attention"]
    config = hf.Gemma3TextConfig(
        vocab_size=50, **sizes, **heads, sliding_window=4, layer_types=kinds
    )
    return hf.Gemma3ForCausalLM(config)


def t5() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = hf.T5Config(vocab_size=50, decoder_start_token_id=0, dropout_rate=0.0, **sizes)
    return hf.T5ForConditionalGeneration(config)


def bart() -> nn.Module:
    layers = {"encoder_layers": 1, "decoder_layers": 2, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    widths = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    tokens = {"forced_eos_token_id": None, "decoder_start_token_id": 2}
    config = hf.BartConfig(vocab_size=50, **layers, **heads, **widths, **tokens)
    return hf.BartForConditionalGeneration(config)


def greedy(path, prompt: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
    """Tokens that onnxruntime chooses, from an empty cache on."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    cache = {
        port.name: np.zeros((len(prompt), port.shape[1], 0, port.shape[3]), np.float32)
        for port in session.get_inputs()
        if port.name.startswith("past_key_values.")
    }
    names = [port.name for port in session.get_outputs()]
    ids, mask, new = prompt.numpy(), mask.numpy(), prompt.numpy()
    for _ in range(steps):
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -new.shape[1] :]
        feeds = {"input_ids": new, "attention_mask": mask, "position_ids": positions, **cache}
        values = dict(zip(names, session.run(None, feeds), strict=True))
        cache = {
            name.replace("present", "past_key_values"): value
            for name, value in values.items()
            if name.startswith("present.")
        }
        new = values["logits"][:, -1].argmax(-1)[:, None]
        ids, mask = np.hstack([ids, new]), np.hstack([mask, np.ones_like(new)])
    return torch.from_numpy(ids)


class Runtime:
    """A file, driven as optimum's class for decoders does: by what its inputs are called.

    What is called `.key` and `.value` is a cache, whose sizes are those of the configuration and of
    which the first step has none; positions are given where the file has an input for them, and
    hidden tokens are at 1; what comes out goes in again in its order, in the order of beams.
    """

    def __init__(self, path, config) -> None:
        self.session = opened(path)
        self.inputs = {port.name: port for port in self.session.get_inputs()}
        self.outputs = [port.name for port in self.session.get_outputs()]
        self.past = [name for name in self.inputs if ".key" in name or ".value" in name]
        self.heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.width = getattr(config, "head_dim", None)
        self.width = self.width or config.hidden_size // config.num_attention_heads

    def step(self, ids: np.ndarray, mask: np.ndarray, cache) -> tuple[np.ndarray, list[np.ndarray]]:
        if cache is None:
            kinds = [self.inputs[name].type for name in self.past]
            assert set(kinds) == {"tensor(float)"}
            cache = [np.zeros((len(ids), self.heads, 0, self.width), np.float32) for _ in kinds]
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            **dict(zip(self.past, cache, strict=True)),
        }
        if "position_ids" in self.inputs:
            places = np.where(mask == 0, 1, mask.cumsum(-1) - 1)
            feeds["position_ids"] = places[:, -ids.shape[1] :]
        assert feeds.keys() == self.inputs.keys()
        values = dict(zip(self.outputs, self.session.run(None, feeds), strict=True))
        kept = [name for name in self.outputs if ".key" in name or ".value" in name]
        return values["logits"][:, -1], [values[name] for name in kept]

    def generate(
        self, prompt: torch.Tensor, mask: torch.Tensor, steps: int, end: int
    ) -> torch.Tensor:
        """Tokens until the end, with zeros behind it; rows change places on the way, and back."""
        ids, mask, cache = prompt.numpy(), mask.numpy(), None
        new, open_rows = ids, np.ones(len(ids), bool)
        for _ in range(steps):
            scores, cache = self.step(new, mask, cache)
            new = np.where(open_rows, scores.argmax(-1), 0)[:, None]
            open_rows = open_rows & (new[:, 0] != end)
            ids, mask = np.hstack([ids, new]), np.hstack([mask, np.ones_like(new)])
            ids, mask, new, open_rows = (item[::-1] for item in (ids, mask, new, open_rows))
            cache = [item[::-1] for item in cache]
        return torch.from_numpy(ids[:: 1 if steps % 2 == 0 else -1].copy())


def opened(path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def answered(session, feeds) -> dict[str, np.ndarray]:
    names = [port.name for port in session.get_outputs()]
    taken = {port.name: feeds[port.name] for port in session.get_inputs()}
    return dict(zip(names, session.run(None, taken), strict=True))


def greedy_answer(folder, prompt, mask, start: int, steps: int) -> torch.Tensor:
    """Tokens that onnxruntime chooses with the three files of an encoder-decoder."""
    encoder, first, later = (opened(folder / f"{name}.onnx") for name in ("encoder", "first", "m"))
    feeds = {"input_ids": prompt.numpy(), "attention_mask": mask.numpy()}
    (states,) = answered(encoder, feeds).values()
    ids = np.full((len(prompt), 1), start)
    feeds = {"encoder_hidden_states": states, "encoder_attention_mask": mask.numpy()}
    values = answered(first, feeds | {"input_ids": ids})
    for step in range(steps):
        for name, value in values.items():
            feeds[name.replace("present", "past_key_values")] = value
        new = values["logits"][:, -1].argmax(-1)[:, None]
        ids = np.hstack([ids, new])
        if step < steps - 1:
            values = answered(later, feeds | {"input_ids": new})
    return torch.from_numpy(ids)


@pytest.mark.parametrize("make", [t5, pytest.param(bart, marks=pytest.mark.slow)])
def test_an_encoder_decoder_is_three_files_that_answer_as_generate_does(make, tmp_path):
    torch.manual_seed(0)
    model = unsettled(make())
    mask = torch.ones_like(IDS)
    mask[1, -1] = 0
    call = {"input_ids": IDS, "attention_mask": mask}
    axes = {name: {0: "batch_size", 1: "encoder_sequence_length"} for name in call}
    encoder = model.get_encoder()
    export_onnx(encoder, tmp_path / "encoder.onnx", example_kwargs=call, dynamic=axes)
    call["decoder_input_ids"] = IDS[:, :2]
    export_onnx(model, tmp_path / "first.onnx", example_kwargs=call, with_past="first")
    report = export_onnx(model, tmp_path / "m.onnx", example_kwargs=call, with_past=True)
    assert "1 x 1 steps after 7 of 3" in report.inputs
    for prompt, seen in ((IDS, mask), (IDS[:1, :3], mask[:1, :3]), (IDS.repeat(2, 2), None)):
        seen = torch.ones_like(prompt) if seen is None else seen
        expected = model.generate(
            prompt, attention_mask=seen, max_new_tokens=8, do_sample=False, eos_token_id=None,
            num_beams=1, pad_token_id=0,
        )  # fmt: skip
        start = model.config.decoder_start_token_id
        assert torch.equal(greedy_answer(tmp_path, prompt, seen, start, 8), expected)


def test_names_of_both_caches_are_those_that_optimum_writes(tmp_path):
    model = unsettled(t5())
    call = {"input_ids": IDS, "decoder_input_ids": IDS}
    export_onnx(model, tmp_path / "m.onnx", example_kwargs=call, with_past=True)
    export_onnx(model, tmp_path / "first.onnx", example_kwargs=call, with_past="first")
    session = opened(tmp_path / "m.onnx")
    places = [f"{number}.{kind}" for number in (0, 1) for kind in ("decoder", "encoder")]
    cache = [f"past_key_values.{place}.{kind}" for place in places for kind in ("key", "value")]
    inputs = {port.name: port.shape for port in session.get_inputs()}
    assert list(inputs) == ["encoder_attention_mask", "input_ids", *cache]
    assert inputs[cache[0]] == ["batch_size", 4, "past_decoder_sequence_length", 8]
    assert inputs[cache[2]] == ["batch_size", 4, "encoder_sequence_length", 8]
    own = [name.replace("past_key_values", "present") for name in cache if "decoder" in name]
    assert [port.name for port in session.get_outputs()] == ["logits", *own]
    first = opened(tmp_path / "first.onnx")
    both = [name.replace("past_key_values", "present") for name in cache]
    assert [port.name for port in first.get_outputs()] == ["logits", *both]


def test_the_command_line_writes_the_first_step_too(tmp_path):
    unsettled(t5()).save_pretrained(tmp_path / "t5")
    command = ["export", str(tmp_path / "t5"), "--out", str(tmp_path / "first.onnx")]
    result = CliRunner().invoke(main, [*command, "--first-step"])
    assert result.exit_code == 0, result.output
    first = opened(tmp_path / "first.onnx")
    inputs = {port.name for port in first.get_inputs()}
    assert inputs == {"encoder_attention_mask", "input_ids", "encoder_hidden_states"}
    kinds = {port.name.split(".")[-2] for port in first.get_outputs() if "present" in port.name}
    assert kinds == {"decoder", "encoder"}
    both = CliRunner().invoke(main, [*command, "--overwrite", "--with-past", "--first-step"])
    assert both.exit_code == 2
    assert "two files" in both.output


def test_a_decoder_has_no_other_first_step(tmp_path):
    with pytest.raises(InputError, match="GPT2LMHeadModel takes its first step with an empty"):
        export_onnx(gpt2(), tmp_path / "m.onnx", IDS, with_past="first")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_transform_made_generates_with_the_cache_of_its_model(tmp_path):
    one, two = (unsettled(llama(), seed) for seed in (1, 2))
    without = {"use_cache": False}
    graph = fxrebasin.transform(two, ref=one, example_inputs=IDS, example_kwargs=without)
    assert not graph.meta["fxrebasin"].certificate.is_identity
    path = tmp_path / "m.onnx"
    export_onnx(graph, path, IDS, without, with_past=two)
    held = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    for name, tensor in graph.named_parameters():
        assert np.array_equal(held[name], tensor.detach().numpy())
    expected = two.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(greedy(path, IDS, torch.ones_like(IDS), 8), expected)
    with pytest.raises(InputError, match="was not made of this GPT2LMHeadModel"):
        export_onnx(graph, tmp_path / "n.onnx", IDS, without, with_past=gpt2())


@pytest.mark.parametrize("make", [gpt2, llama, gemma3])
def test_greedy_text_of_onnxruntime_is_that_of_generate(make, tmp_path):
    torch.manual_seed(0)
    model = unsettled(make())
    report = export_onnx(model, tmp_path / "m.onnx", IDS, with_past=True)
    assert report.notes == ()
    assert "2 x 5 steps after 0" in report.inputs
    for prompt in (IDS, IDS[:1, :1], IDS.repeat(2, 2)):
        for padding in (0, 1):
            mask = torch.ones_like(prompt)
            mask[0, : padding * (prompt.shape[1] // 2)] = 0
            expected = model.generate(
                prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
            assert torch.equal(greedy(tmp_path / "m.onnx", prompt, mask, 12), expected)
    end = int(expected[0, -6])  # of the longest prompt, with hidden tokens
    wanted = model.generate(
        prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=end,
        pad_token_id=0,
    )  # fmt: skip
    found = Runtime(tmp_path / "m.onnx", model.config).generate(prompt, mask, 12, end)
    steps = wanted.shape[1]
    assert torch.equal(found[:, :steps], wanted)
    assert not found[:, steps:].any()


def test_names_and_axes_are_those_that_optimum_writes(tmp_path):
    model = unsettled(llama())
    export_onnx(model, tmp_path / "m.onnx", example_kwargs={"input_ids": IDS}, with_past=True)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    inputs = {port.name: port.shape for port in session.get_inputs()}
    cache = [f"past_key_values.{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    assert list(inputs) == ["input_ids", "attention_mask", "position_ids", *cache]
    assert inputs["input_ids"] == ["batch_size", "sequence_length"]
    assert inputs[cache[0]] == ["batch_size", 2, "past_sequence_length", 8]
    present = [name.replace("past_key_values", "present") for name in cache]
    assert [port.name for port in session.get_outputs()] == ["logits", *present]
    held = {one.name for one in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {name for name, _ in model.named_parameters()} <= held


def test_a_decoder_is_left_as_it_was(tmp_path):
    model = unsettled(gpt2()).train()
    before = {name: id(value) for name, value in vars(model).items()}
    export_onnx(model, tmp_path / "m.onnx", IDS, with_past=True)
    assert model.training
    assert {name: id(value) for name, value in vars(model).items()} == before
    assert model.lm_head.weight is model.transformer.wte.weight


def test_models_without_such_a_cache_are_refused(tmp_path):
    with pytest.raises(InputError, match="Attention is not a decoder of transformers"):
        export_onnx(unsettled(Attention()), tmp_path / "m.onnx", IDS % 20, with_past=True)
    with pytest.raises(InputError, match="leave out dynamic="):
        export_onnx(
            gpt2(), tmp_path / "m.onnx", IDS, with_past=True, dynamic={"input_ids": {0: "rows"}}
        )
    assert list(tmp_path.iterdir()) == []


def test_experts_are_exported_and_the_model_keeps_its_own_form(tmp_path):
    config = hf.MixtralConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=24, vocab_size=50, num_local_experts=4,
    )  # fmt: skip
    model = unsettled(hf.MixtralForCausalLM(config))
    before = model.config._experts_implementation
    assert before != "batched_mm"
    report = export_onnx(
        model, tmp_path / "m.onnx", IDS, {"use_cache": False}, dynamic={"input_ids": ("b", "s")}
    )
    assert report.passed
    assert model.config._experts_implementation == before
    assert all(
        module.config is model.config for module in model.modules() if "config" in vars(module)
    )
