"""Folders of Hugging Face models that are read and written a tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers as t
from safetensors.torch import save_file

import fxrebasin
from fxrebasin.cli import large
from tests.support.commands import document, invoke
from tests.support.randomise import randomise
from tests.support.text_models import GROUPED

SOME = ("--max-memory", "2GiB")
IDS = torch.arange(12).view(2, 6)


def pair(kind: Any, config: Any, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """a, and b, which is a in another order, with a file of the tokenizer and a card; a's state."""
    model = randomise(kind(config)).eval()
    order = fxrebasin.analyze(model, IDS).random(1)
    model = model.bfloat16()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder / "a", **options)
    model.load_state_dict(order.permute_state_dict(state))
    model.save_pretrained(folder / "b", **options)
    (folder / "b" / "tokenizer.json").write_text("{}")
    (folder / "b" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    return state


@pytest.fixture
def llamas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.chdir(tmp_path)
    config = t.LlamaConfig(**GROUPED, tie_word_embeddings=True)
    return pair(t.LlamaForCausalLM, config, tmp_path, max_shard_size="3KB")


def test_a_folder_is_what_it_is_in_memory(llamas: dict[str, torch.Tensor]) -> None:
    found = document("transform", "b", "--ref", "a", "--out", "c", *SOME)
    assert found["distance_after"] == 0
    invoke("transform", "b", "--ref", "a", "--out", "d")
    names = sorted(path.name for path in Path("d").iterdir())
    assert sorted(path.name for path in Path("c").iterdir()) == names
    assert sum(name.endswith(".safetensors") for name in names) > 2
    for name in names:
        if name != "README.md":
            assert Path("c", name).read_bytes() == Path("d", name).read_bytes(), name
    card = Path("c", "README.md").read_text()
    assert "license: mit" in card
    assert "bit for bit" in card
    again = t.LlamaForCausalLM.from_pretrained("c")
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in llamas.items())


def test_its_numbers_can_be_others(llamas: dict[str, torch.Tensor]) -> None:
    invoke("transform", "b", "--ref", "a", "--out", "c", *SOME, "--dtype", "float32")
    config = json.loads(Path("c", "config.json").read_text())
    assert config["dtype"] == "float32"
    again = t.LlamaForCausalLM.from_pretrained("c").state_dict()
    assert all(torch.equal(again[name], tensor.float()) for name, tensor in llamas.items())


def test_folders_merge(llamas: dict[str, torch.Tensor]) -> None:
    invoke("merge", "a", "b", "--out", "c", *SOME)
    again = t.LlamaForCausalLM.from_pretrained("c").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in llamas.items())
    assert {"README.md", "fxrebasin.json", "config.json"} <= {p.name for p in Path("c").iterdir()}


def test_what_the_library_converts_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = t.MixtralConfig(**GROUPED, num_local_experts=3)
    state = pair(t.MixtralForCausalLM, config, tmp_path)
    given = ("transform", "b", "--ref", "a", "--out", "c")
    refused = invoke(*given, *SOME, code=2)
    assert "cannot be read a tensor at a time" in refused.output
    assert "experts" in refused.output
    monkeypatch.setattr(large, "available_memory", lambda: 100_000)
    invoke(*given)
    again = t.MixtralForCausalLM.from_pretrained("c").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.usefixtures("llamas")
def test_files_that_are_not_written_again_are_named_as_in_memory() -> None:
    save_file({"extra": torch.ones(3)}, "b/model-00099-of-00099.safetensors")
    texts = {
        limit: document("transform", "b", "--ref", "a", "--out", f"c{len(limit)}", *limit)
        for limit in (SOME, ())
    }
    for found in texts.values():
        (note,) = found["model_b"]["left_out"]
        assert note.startswith("model-00099-of-00099.safetensors is not written again")
    names = [sorted(path.name for path in Path(f"c{count}").iterdir()) for count in (0, 2)]
    assert names[0] == names[1]
    assert "model-00099-of-00099.safetensors" not in names[0]
    assert "not written again" in invoke("merge", "b", "a", "--out", "m", *SOME).output
