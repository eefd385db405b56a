"""Folders of Hugging Face models: dtypes, shards, files and names as they came; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import diffusers
import transformers as t
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError, CheckpointError, InputError
from fxrebasin.models.by_name import build_model
from fxrebasin.storage.checkpoint import read_checkpoint, write_checkpoint
from fxrebasin.storage.reading import Checkpoint, Reading
from tests.support.diffusion_models import DIFFUSION
from tests.support.randomise import difference, outputs, randomise
from tests.support.text_models import COMMON, GROUPED

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def bert(kind: Any = t.BertForSequenceClassification, **config: Any) -> Any:
    return randomise(kind(t.BertConfig(**{**COMMON, **config}))).eval()


def gpt2() -> Any:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 53}
    return randomise(t.GPT2LMHeadModel(t.GPT2Config(**sizes))).eval()


def mixtral() -> Any:
    return randomise(t.MixtralForCausalLM(t.MixtralConfig(**GROUPED, num_local_experts=3))).eval()


def t5() -> Any:
    sizes = {"vocab_size": 53, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1}
    return randomise(t.T5ForConditionalGeneration(t.T5Config(**sizes, num_heads=4))).eval()


def saved(model: Any, path: Path, **options: Any) -> Path:
    model.save_pretrained(path, **options)
    return path


def changed(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Other weights, different for each bit of what was read, and exact in every dtype."""
    return {n: 2 * v if v.is_floating_point() else v for n, v in checkpoint.state.items()}


def rewritten(
    folder: Path, model: Any = None, reading: Reading | None = None, **options: Any
) -> tuple[Checkpoint, Path]:
    model = build_model(str(folder)) if model is None else model
    checkpoint = read_checkpoint(folder, model, reading)
    out = options.pop("out", folder.parent / f"{folder.name}.out")
    assert write_checkpoint(out, checkpoint, changed(checkpoint), **options) == (out,)
    return checkpoint, out


def assert_doubled(out: Path, model: Any) -> None:
    """What from_pretrained loads is the model with every weight doubled."""
    back, loading = type(model).from_pretrained(out, output_loading_info=True, dtype=torch.float32)
    assert not any(loading.values())
    for name, tensor in model.state_dict().items():
        expected = 2 * tensor.float() if tensor.is_floating_point() else tensor
        assert back.state_dict()[name].equal(expected), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("build", [gpt2, t5, mixtral])
def test_dtypes_stay(tmp_path: Path, build: Callable[[], Any], dtype: torch.dtype) -> None:
    folder = saved(build().to(dtype), tmp_path / "in")
    checkpoint, out = rewritten(folder)
    assert {v.dtype for v in checkpoint.state.values()} == {dtype}
    before, after = load_file(folder / FILE), load_file(out / FILE)
    assert list(before) == list(after)
    assert all(after[name].equal(2 * tensor) for name, tensor in before.items())
    assert {tensor.dtype for tensor in after.values()} == {dtype}


@pytest.mark.parametrize("build", [bert, t5, mixtral])
def test_each_tensor_has_a_dtype_of_its_own(tmp_path: Path, build: Callable[[], Any]) -> None:
    folder = saved(build(), tmp_path / "in")
    kinds = (torch.bfloat16, torch.float32, torch.float16)
    mixed = {
        name: tensor.to(kinds[i % 3])
        for i, (name, tensor) in enumerate(load_file(folder / FILE).items())
    }
    save_file(mixed, folder / FILE, metadata={"format": "pt", "made": "by hand"})
    _, out = rewritten(folder)
    after = load_file(out / FILE)
    assert {name: v.dtype for name, v in after.items()} == {
        name: v.dtype for name, v in mixed.items()
    }
    assert all(after[name].equal(2 * tensor) for name, tensor in mixed.items())
    with safe_open(out / FILE, "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "by hand"}


def test_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path / "in")
    _, out = rewritten(folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(out / FILE).values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert t.AutoModel.from_pretrained(out).dtype == torch.bfloat16


@pytest.mark.parametrize("named", ["", "config.json", INDEX])
def test_shards_stay(tmp_path: Path, named: str) -> None:
    model = mixtral()
    folder = saved(model, tmp_path / "in", max_shard_size="16KB")
    module = build_model(str(folder / named))
    checkpoint = read_checkpoint(folder / named, module)
    out = tmp_path / "out"
    write_checkpoint(out, checkpoint, changed(checkpoint))
    assert (out / INDEX).read_text() == (folder / INDEX).read_text()
    shards = set(json.loads((out / INDEX).read_text())["weight_map"].values())
    assert len(shards) > 3
    assert all((out / s).stat().st_size == (folder / s).stat().st_size for s in shards)
    assert_doubled(out, model)


def test_pickles_and_ties_in_them_stay(tmp_path: Path) -> None:
    model = gpt2()
    folder = saved(model, tmp_path / "in")
    stored = load_file(folder / FILE)
    (folder / FILE).unlink()
    stored["lm_head.weight"] = stored["transformer.wte.weight"]
    torch.save(stored, folder / "pytorch_model.bin")
    _, out = rewritten(folder)
    assert not (out / FILE).exists()
    after = torch.load(out / "pytorch_model.bin", weights_only=True)
    assert list(after) == list(stored)
    assert after["lm_head.weight"].data_ptr() == after["transformer.wte.weight"].data_ptr()
    assert after["lm_head.weight"].equal(2 * stored["lm_head.weight"])
    assert_doubled(out, model)


def test_a_tied_tensor_that_is_stored_twice_is_written_twice(tmp_path: Path) -> None:
    folder = saved(gpt2(), tmp_path / "in")
    stored = load_file(folder / FILE)
    save_file({**stored, "lm_head.weight": stored["transformer.wte.weight"].clone()}, folder / FILE)
    _, out = rewritten(folder)
    assert load_file(out / FILE)["lm_head.weight"].equal(2 * stored["transformer.wte.weight"])


@pytest.mark.parametrize("sharded", [False, True])
def test_names_of_old_releases_become_those_of_today(tmp_path: Path, sharded: bool) -> None:
    model = bert(t.BertForMaskedLM)
    folder = saved(model, tmp_path / "in")
    stored = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor
        for name, tensor in load_file(folder / FILE).items()
    }
    stored["bert.embeddings.position_ids"] = torch.arange(32)[None]
    (folder / FILE).unlink()
    half = len(stored) // 2
    parts = [dict(list(stored.items())[:half]), dict(list(stored.items())[half:])]
    if sharded:
        names = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
        for name, part in zip(names, parts, strict=True):
            save_file(part, folder / name, metadata={"format": "pt"})
        places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        )
    else:
        save_file(stored, folder / FILE, metadata={"format": "pt"})
    _, out = rewritten(folder)
    assert (out / (INDEX if sharded else FILE)).exists()
    assert_doubled(out, model)


def test_a_base_model_takes_a_folder_with_a_head_and_says_what_it_leaves(tmp_path: Path) -> None:
    model = bert()
    checkpoint, out = rewritten(saved(model, tmp_path / "in"), bert(t.BertModel))
    assert checkpoint.extra == ("classifier.bias", "classifier.weight")
    assert any("not in what is written: classifier.bias" in note for note in checkpoint.notes)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertModel"]
    assert_doubled(out, model.bert)


def test_a_part_of_a_model_of_several(tmp_path: Path) -> None:
    config = t.CLIPConfig(
        text_config=dict(COMMON),
        vision_config={**COMMON, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    model: Any = randomise(t.CLIPModel(config)).eval()
    part = t.CLIPTextModel(config.text_config)
    _, out = rewritten(saved(model, tmp_path / "in"), part)
    assert json.loads((out / "config.json").read_text())["model_type"] == "clip_text_model"
    wanted = t.CLIPTextModel.from_pretrained(tmp_path / "in")
    assert_doubled(out, wanted)


def test_a_head_that_is_not_there_is_no_weight(tmp_path: Path) -> None:
    folder = saved(bert(t.BertModel), tmp_path / "in")
    with pytest.raises(ArchitectureMismatchError, match=r"ignore=\S*classifier\.\*"):
        read_checkpoint(folder, bert())
    checkpoint, out = rewritten(folder, bert(), Reading(ignore=("classifier.*",)))
    assert not [name for name in checkpoint.state if name.startswith("classifier")]
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert_doubled(out, t.BertModel.from_pretrained(folder))


def test_heads_of_other_sizes_are_ignored_where_that_is_asked(tmp_path: Path) -> None:
    folder = saved(bert(num_labels=5), tmp_path / "in")
    with pytest.raises(ArchitectureMismatchError, match=r"ignore=\S*classifier\.\*"):
        read_checkpoint(folder, bert())
    checkpoint = read_checkpoint(folder, bert(), Reading(ignore=("classifier.*",)))
    assert checkpoint.state["classifier.weight"].shape == (5, COMMON["hidden_size"])


def test_missing_tensors_that_the_class_passes_over_are_missing(tmp_path: Path) -> None:
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "window_size": 4}
    config = t.SwinConfig(**sizes, depths=[1, 1], num_heads=[2, 2])
    model = randomise(t.SwinForMaskedImageModeling(config)).eval()
    folder = saved(model, tmp_path / "in")
    assert len(read_checkpoint(folder, model).state) == len(model.state_dict())
    stored = load_file(folder / FILE)
    rest = {n: tensor for n, tensor in stored.items() if not n.startswith("swin.layernorm")}
    save_file(rest, folder / FILE, metadata={"format": "pt"})
    with pytest.raises(ArchitectureMismatchError, match=r"swin\.layernorm\.weight"):
        read_checkpoint(folder, model)


def test_a_configuration_that_differs_is_told(tmp_path: Path) -> None:
    folder = saved(bert(num_attention_heads=2), tmp_path / "in")
    (note,) = read_checkpoint(folder, bert()).notes
    assert "num_attention_heads is 2 and not 3" in note


def test_variants(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path / "in")
    saved(bert().half(), tmp_path / "half", variant="fp16")
    alone, _ = rewritten(tmp_path / "half")
    shutil.copy(tmp_path / "half" / "model.fp16.safetensors", folder)
    plain, out = rewritten(folder)
    assert "model.fp16.safetensors is not written again" in plain.left_out[0]
    assert not (out / "model.fp16.safetensors").exists()
    chosen, out = rewritten(folder, reading=Reading(key="fp16"), out=tmp_path / "chosen")
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.fp16.safetensors"]
    for found, dtype in ((alone, torch.half), (plain, torch.float), (chosen, torch.half)):
        assert found.state["classifier.weight"].dtype == dtype
    with pytest.raises(CheckpointError, match=r"key='bf16'; it has 'fp16'"):
        read_checkpoint(folder, bert(), Reading(key="bf16"))


def test_other_files_stay_and_other_weights_do_not(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path / "in")
    stay = ["tokenizer.json", "vocab.txt", "spiece.model", "preprocessor_config.json", "own.py"]
    stay += ["training_args.bin", "1_Pooling/config.json", "trainer_state.json"]
    go = [
        "tf_model.h5",
        "flax_model.msgpack",
        "optimizer.pt",
        "onnx/model.onnx",
        "pytorch_model.bin",
    ]
    for name in [*stay, *go, ".git/HEAD", ".cache/x.json"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    checkpoint, out = rewritten(folder)
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert found == {*stay, FILE, "config.json"}
    assert all((out / name).read_bytes() == name.encode() for name in stay)
    assert {sentence.split()[0] for sentence in checkpoint.left_out} == set(go)


def test_the_card_keeps_the_header_and_the_text_that_were_there(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path / "in")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Old\n")
    _, out = rewritten(folder, card="# New\n")
    assert (out / "README.md").read_text() == "---\nlicense: mit\n---\n# New\n\n---\n\n# Old\n"
    _, plain = rewritten(folder, out=tmp_path / "plain")
    assert (plain / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    _, first = rewritten(folder, out=tmp_path / "first", card="# New\n")
    assert (first / "README.md").read_text() == "# New\n"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["in", "in/x", "link", "link/x"])
def test_nothing_is_written_into_what_is_read(tmp_path: Path, place: str, overwrite: bool) -> None:
    folder = saved(bert(), tmp_path / "in")
    (tmp_path / "link").symlink_to(folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match="is read; choose another place"):
        rewritten(folder, out=tmp_path / place, overwrite=overwrite)
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_folders_are_replaced_only_if_they_are_of_models_and_that_is_asked(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path / "in")
    _, out = rewritten(folder)
    (out / "stale.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="exists already"):
        rewritten(folder)
    rewritten(folder, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", FILE]
    (tmp_path / "empty").mkdir()
    rewritten(folder, out=tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="is not the folder of a model"):
        rewritten(folder, out=tmp_path / "mine", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "in", "in.out", "mine"]


@pytest.mark.parametrize("fault", ["save_pretrained", "copyfile"])
def test_what_fails_leaves_nothing(tmp_path: Path, fault: str, monkeypatch: Any) -> None:
    folder = saved(bert(), tmp_path / "in")
    _, out = rewritten(folder)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    owner: Any = t.PreTrainedModel if fault == "save_pretrained" else shutil
    monkeypatch.setattr(owner, fault, full)
    with pytest.raises(CheckpointError, match="No space left"):
        rewritten(folder, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "in.out"]


def test_files_have_the_permissions_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    _, out = rewritten(saved(bert(), tmp_path / "in"))
    assert {p.stat().st_mode for p in out.iterdir()} == {(tmp_path / "probe").stat().st_mode}
    (tmp_path / "folder").mkdir()
    assert out.stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_folders_of_another_model_or_without_weights(tmp_path: Path) -> None:
    folder = saved(gpt2(), tmp_path / "in")
    with pytest.raises(CheckpointError, match="is of a gpt2 model; expected one for BertFor"):
        read_checkpoint(folder, bert())
    (folder / FILE).rename(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"no weights that transformers reads .*; it holds"):
        read_checkpoint(folder, gpt2())
    folder = saved(bert(), tmp_path / "mismatched")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 8}))
    with pytest.raises(CheckpointError, match=r"does not fit its own configuration: bert\.enc"):
        read_checkpoint(folder, bert())


def test_float8_is_refused(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path / "in")
    stored = load_file(folder / FILE)
    stored["classifier.weight"] = stored["classifier.weight"].to(torch.float8_e4m3fn)
    save_file(stored, folder / FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="quantised ones cannot be permuted"):
        read_checkpoint(folder, bert())


@pytest.mark.parametrize(("sharded", "config"), [(False, True), (False, False), (True, False)])
def test_files_of_other_names_than_the_module_has(
    tmp_path: Path, sharded: bool, config: bool
) -> None:
    model = mixtral()
    options = {"max_shard_size": "16KB"} if sharded else {}
    folder = saved(model, tmp_path / "in", **options)
    if not config:
        (folder / "config.json").unlink()
    name = INDEX if sharded else FILE
    checkpoint = read_checkpoint(folder / name, mixtral())
    out = tmp_path / "out" / name
    assert write_checkpoint(out, checkpoint, changed(checkpoint)) == (out,)
    assert {p.name for p in out.parent.iterdir()} == {p.name for p in folder.iterdir()} - {
        "config.json",
        "generation_config.json",
    }
    for path in folder.glob("*.safetensors"):
        before, after = load_file(path), load_file(out.parent / path.name)
        assert list(after) == list(before)
        assert all(after[key].equal(2 * tensor) for key, tensor in before.items())
    pickled = tmp_path / "out.bin"
    write_checkpoint(pickled, checkpoint, checkpoint.state, dtype=torch.bfloat16)
    found = torch.load(pickled, weights_only=True)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert len(found) == len(checkpoint.source.dtypes)
    with pytest.raises(ArchitectureMismatchError):
        read_checkpoint(folder / name, gpt2())


def test_a_folder_is_written_as_a_file_under_the_names_in_files(tmp_path: Path) -> None:
    folder = saved(mixtral(), tmp_path / "in")
    _, out = rewritten(folder, out=tmp_path / "out.safetensors")
    before, after = load_file(folder / FILE), load_file(out)
    assert all(after[key].equal(2 * tensor) for key, tensor in before.items())


def test_a_file_of_another_model_is_refused_by_its_own_names(tmp_path: Path) -> None:
    folder = saved(bert(t.BertModel), tmp_path / "in")
    with pytest.raises(ArchitectureMismatchError, match=r"ignore=\S*classifier\.\*"):
        read_checkpoint(folder / FILE, bert())
    checkpoint = read_checkpoint(folder / FILE, bert(), Reading(ignore=("classifier.*",)))
    assert "bert.pooler.dense.weight" in checkpoint.state


def test_what_is_computed_and_not_stored_is_no_weight(tmp_path: Path) -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}
    tokens = {"vocab_size": 53, "pad_token_id": 0, "decoder_start_token_id": 1}
    config = t.MarianConfig(**sizes, **heads, **tokens, max_position_embeddings=16)
    torch.manual_seed(3)
    folder = saved(t.MarianMTModel(config), tmp_path / "in")
    module: Any = build_model(str(folder))
    checkpoint = read_checkpoint(folder, module)
    module.load_state_dict(dict(checkpoint.state))
    ids = torch.arange(2, 9)[None]
    inputs = {"input_ids": ids, "decoder_input_ids": ids, "use_cache": False}
    symmetry = fxrebasin.analyze(module, (), inputs)
    name = "model.encoder.embed_positions.weight"
    assert all(name not in {tensor for tensor, _ in c.axes} for c in symmetry.classes)
    moved = symmetry.random(1).permute_state_dict(checkpoint.state)
    write_checkpoint(tmp_path / "out", checkpoint, moved)
    back = t.MarianMTModel.from_pretrained(tmp_path / "out").eval()
    assert difference(outputs(module, (), inputs), outputs(back, (), inputs)) < 1e-5
    moved[name] = moved[name].flip(1)
    for out in (tmp_path / "wrong", tmp_path / "wrong.safetensors"):
        with pytest.raises(CheckpointError, match=r"embed_positions\.weight, which it"):
            write_checkpoint(out, checkpoint, moved)
        assert not out.exists()


def test_a_folder_for_a_model_that_is_of_no_library_is_a_file_of_weights(tmp_path: Path) -> None:
    model = bert()
    folder = saved(model, tmp_path / "in")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = bert()

    checkpoint = read_checkpoint(folder, Wrapped())
    assert checkpoint.state["inner.classifier.weight"].equal(model.classifier.weight)


def test_the_messages_of_the_libraries_are_as_they_were(tmp_path: Path, capfd: Any) -> None:
    level = t.utils.logging.get_verbosity()
    folder = saved(bert(), tmp_path / "in")
    capfd.readouterr()
    rewritten(folder, bert(t.BertModel))
    assert capfd.readouterr() == ("", "")
    assert t.utils.logging.get_verbosity() == level
    assert t.utils.logging.is_progress_bar_enabled()


def test_a_folder_is_a_reference_in_float32_and_what_is_written_in_bfloat16(tmp_path: Path) -> None:
    config = t.LlamaConfig(**GROUPED)
    model: Any = t.LlamaForCausalLM(config).eval()
    a, b = (
        saved(randomise(t.LlamaForCausalLM(config), seed).bfloat16(), tmp_path / str(seed))
        for seed in (1, 2)
    )
    checkpoint = read_checkpoint(b, model)
    model.load_state_dict(dict(checkpoint.state))
    result = fxrebasin.transform(model, ref=a, example_kwargs={"input_ids": torch.arange(7)[None]})
    certificate = result.meta["fxrebasin"].certificate
    write_checkpoint(tmp_path / "out", checkpoint, certificate.permute_state_dict(checkpoint.state))
    before, after = load_file(b / FILE), load_file(tmp_path / "out" / FILE)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for name, tensor in before.items():
        assert after[name].flatten().sort()[0].equal(tensor.flatten().sort()[0])
    loaded = t.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    inputs = {"input_ids": torch.arange(7)[None]}
    assert difference(outputs(model, (), inputs), outputs(loaded.eval(), (), inputs)) < 1e-4


@pytest.mark.parametrize("name", ["u-net of sd 1.5", "autoencoder"])
@pytest.mark.parametrize("pickled", [False, True])
def test_models_of_diffusers(tmp_path: Path, name: str, pickled: bool) -> None:
    built: Any = randomise(DIFFUSION[name]()[0]).eval().half()
    options = {"safe_serialization": not pickled, "max_shard_size": "20KB"}
    folder = saved(built, tmp_path / "in", **options)
    module = build_model(str(folder))
    assert type(module) is type(built)
    checkpoint, out = rewritten(folder, module)
    assert {tensor.dtype for tensor in checkpoint.state.values()} == {torch.float16}
    assert {p.name for p in out.iterdir()} == {p.name for p in folder.iterdir()}
    assert len(list(out.iterdir())) > 3
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    back = type(built).from_pretrained(out, torch_dtype=torch.float16, use_safetensors=not pickled)
    for key, tensor in built.state_dict().items():
        assert back.state_dict()[key].equal(2 * tensor), key


def test_folders_of_diffusers_that_are_refused(tmp_path: Path) -> None:
    unet: Any = DIFFUSION["u-net of sd 1.5"]()[0]
    folder = saved(unet, tmp_path / "pipeline" / "unet")
    with pytest.raises(CheckpointError, match="of a UNet2DConditionModel; expected one of a Auto"):
        read_checkpoint(folder, DIFFUSION["autoencoder"]()[0])
    with pytest.raises(CheckpointError, match=r"of diffusers; .* another library"):
        read_checkpoint(folder, bert())
    with pytest.raises(CheckpointError, match=r"of transformers; .* another library"):
        read_checkpoint(saved(bert(), tmp_path / "bert"), unet)
    (folder.parent / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"name the folder of one of them: \S*unet$"):
        read_checkpoint(folder.parent, unet)
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    del stored["conv_in.weight"]
    save_file(stored, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArchitectureMismatchError, match=r"conv_in\.weight"):
        read_checkpoint(folder, unet)


def test_nothing_of_diffusers_is_global() -> None:
    assert diffusers.utils.logging.is_progress_bar_enabled()
