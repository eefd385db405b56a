"""Models of Hugging Face folders: what a configuration gives, and what it may not ask for."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from fxrebasin.errors import InputError
from fxrebasin.models.by_name import build_model

SMALL_GPT2 = {
    **{"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2},
    **{"vocab_size": 11, "n_positions": 16},
}
SMALL_UNET = {
    **{"_class_name": "UNet2DModel", "block_out_channels": [32, 64], "layers_per_block": 1},
    **{"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
}
CODE = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

class OwnConfig(PreTrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(config.width, 2)
        self.post_init()

open({ran!r}, "w").close()
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection and no question."""

    def refuse(*_: object) -> None:
        raise AssertionError("something was to be fetched or asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("builtins.input", refuse)
    # What transformers itself would take for "no network" hides that something was tried.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def folder(path: Path, **config: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("architectures", "kind"),
    [(["GPT2LMHeadModel"], "GPT2LMHeadModel"), ("GPT2Model", "GPT2Model"), (None, "GPT2Model")],
)
@pytest.mark.parametrize("form", ["{}", "hf:{}", "{}/config.json"])
def test_the_class_of_the_configuration(tmp_path, architectures, kind, form):
    folder(tmp_path, **SMALL_GPT2, architectures=architectures)
    assert type(build_model(form.format(tmp_path))).__name__ == kind


def test_a_configuration_of_another_name_and_one_beside_an_index(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL_GPT2))
    assert type(build_model(str(tmp_path / "small.json"))).__name__ == "GPT2Model"
    folder(tmp_path, **SMALL_GPT2)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    assert type(build_model(str(index))).__name__ == "GPT2Model"


def test_entries_of_a_configuration_can_be_given(tmp_path):
    folder(tmp_path / "gpt2", **SMALL_GPT2, architectures=["GPT2ForSequenceClassification"])
    model = build_model(f"hf:{tmp_path}/gpt2?num_labels=5&n_layer=2")
    assert (model.score.out_features, len(model.transformer.h)) == (5, 2)
    folder(tmp_path / "unet", **SMALL_UNET)
    assert build_model(f"hf:{tmp_path}/unet?in_channels=4").conv_in.in_channels == 4
    for name in (f"{tmp_path}/gpt2?n_layr=2", f"{tmp_path}/gpt2?trust_remote_code=True"):
        with pytest.raises(InputError, match="has no keyword argument"):
            build_model(name)
    with pytest.raises(InputError, match="did you mean in_channels"):
        build_model(f"{tmp_path}/unet?in_chanels=4")


def test_models_are_in_float32_and_the_same_each_time(tmp_path):
    folder(tmp_path, **SMALL_GPT2, dtype="bfloat16")
    first, second = (build_model(str(tmp_path)) for _ in range(2))
    assert first.wte.weight.dtype == torch.float32
    assert first.wte.weight.equal(second.wte.weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "is not a Hugging Face configuration"),
        ({"model_type": "no-such-model"}, "that the installed transformers reads"),
        ({"model_type": "bert", "hidden_size": "many"}, "'hidden_size' expected int"),
        (
            {"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3},
            "no model can be built .* not a multiple",
        ),
        # Names of transformers that are no models, or of other configurations.
        *(
            ({**SMALL_GPT2, "architectures": [name]}, f"names {name} under 'architectures'")
            for name in ("pipeline", "Trainer", "AutoModel", "PreTrainedModel", "BertModel", "a.b")
        ),
        ({"_class_name": "AutoPipelineForText2Image"}, "no class of models of that name"),
        ({**SMALL_UNET, "quantization_config": {"quant_method": "torchao"}}, "quantised model"),
        (
            {**SMALL_GPT2, "quantization_config": {"quant_method": "bitsandbytes"}},
            "quantised model",
        ),
        (
            {"model_type": "timm_backbone", "backbone": "hf-hub:someone/something"},
            "names a backbone to fetch",
        ),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "someone/code--own.OwnConfig"}},
            "code of its own .* --trust-remote-code",
        ),
    ],
)
def test_configurations_that_are_refused(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        build_model(str(folder(tmp_path, **config)))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_file_that_is_no_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="is not a Hugging Face configuration"):
        build_model(str(tmp_path))


def test_attention_and_backbones_are_those_that_are_there(tmp_path):
    for name in ("kernels-community/flash-attn", "flash_attention_2", "someone/something"):
        folder(tmp_path, **SMALL_GPT2, attn_implementation=name, experts_implementation=name)
        assert build_model(str(tmp_path)).config._attn_implementation in ("sdpa", "eager")
    folder(tmp_path, **SMALL_GPT2, attn_implementation="eager")
    assert build_model(str(tmp_path)).config._attn_implementation == "eager"
    backbone = {"backbone": "resnet10t", "use_pretrained_backbone": True}
    folder(tmp_path, model_type="timm_backbone", architectures=["TimmBackbone"], **backbone)
    assert type(build_model(str(tmp_path))).__name__ == "TimmBackbone"


def test_code_in_a_folder_is_run_only_where_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    place, ran = tmp_path / "own", tmp_path / "ran"
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    folder(place, model_type="own", width=3, auto_map=names, architectures=["OwnModel"])
    (place / "own.py").write_text(CODE.replace("{ran!r}", repr(str(ran))))
    with pytest.raises(InputError, match="--trust-remote-code"):
        build_model(str(place))
    assert not ran.exists()
    assert build_model(str(place), trust_remote_code=True).layer.in_features == 3
    assert ran.exists()


def test_code_of_the_models_alone_is_refused_too(tmp_path):
    names = {"AutoModel": "own.OwnModel"}
    folder(tmp_path, **SMALL_GPT2, auto_map=names, architectures=["OwnModel"])
    with pytest.raises(InputError, match=r"names OwnModel under .*--trust-remote-code"):
        build_model(str(tmp_path))


def test_a_pipeline_says_which_folders_to_name(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    folder(tmp_path / "unet", **SMALL_UNET)
    folder(tmp_path / "scheduler", _class="DDIMScheduler")
    with pytest.raises(InputError, match=r"several models; name .*: \S*/unet$"):
        build_model(str(tmp_path))


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_no_model(tmp_path, whole):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    if whole:
        folder(tmp_path, **SMALL_GPT2)
    with pytest.raises(InputError, match=r"holds an adapter .*merge_and_unload"):
        build_model(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere/config.json", "missing.json", "hf:someone/model"])
def test_what_is_not_there_is_not_fetched(name):
    with pytest.raises(InputError, match=r"no Hugging Face configuration at .*nothing is"):
        build_model(name)
