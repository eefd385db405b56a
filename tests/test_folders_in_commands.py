"""Commands on folders of Hugging Face models: what they read, write, say and refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers as t
import yaml
from safetensors.torch import load_file

from tests.support.commands import document, invoke
from tests.support.randomise import randomise
from tests.support.text_models import CAUSAL

FILE = "model.safetensors"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fine-tuned models, in bfloat16."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab", 1):
        model: Any = randomise(t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**CAUSAL)), seed)
        model.bfloat16().save_pretrained(name)
        (Path(name) / "tokenizer.json").write_text("{}")
        (Path(name) / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("model", ["b", "hf:b", "b/config.json"])
@pytest.mark.parametrize("ref", ["a", "a/config.json", f"a/{FILE}"])
def test_a_folder_is_a_model_a_checkpoint_and_a_reference(model: str, ref: str) -> None:
    invoke("transform", model, "--ref", ref, "--out", "out")
    before, after = load_file(f"b/{FILE}"), load_file(f"out/{FILE}")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert any(not after[name].equal(tensor) for name, tensor in before.items())
    for name, tensor in before.items():
        assert after[name].flatten().sort()[0].equal(tensor.flatten().sort()[0])
    t.AutoModelForCausalLM.from_pretrained("out")


def test_two_folders_are_merged_into_one_with_a_card() -> None:
    invoke("merge", "a", "b", "--out", "out")
    model, loading = t.GPTNeoXForCausalLM.from_pretrained("out", output_loading_info=True)
    assert not any(loading.values())
    assert model.dtype == torch.bfloat16
    assert files("out")["config.json"] == files("a")["config.json"]
    assert files("out")["tokenizer.json"] == files("a")["tokenizer.json"]
    card = (Path("out") / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "mit"
    assert "fxrebasin" in header["tags"]
    told = (f"transformers: {t.__version__}", "SHA-256", "fxrebasin merge a b --out out", "# Mine")
    for line in told:
        assert line in card


@pytest.mark.parametrize("out", ["a", "b", "a/x.safetensors", "b/x"])
@pytest.mark.parametrize("command", ["transform b --ref a", "merge a b"])
def test_nothing_is_written_into_what_is_read(command: str, out: str) -> None:
    before = files("a"), files("b")
    result = invoke(*command.split(), "--out", out, "--overwrite", code=2)
    assert "is read; choose another place" in result.output
    assert (files("a"), files("b")) == before


def test_a_folder_that_exists_is_replaced_only_if_that_is_asked() -> None:
    invoke("transform", "b", "--ref", "a", "--out", "out")
    before = files("out")
    result = invoke("merge", "a", "b", "--out", "out", code=2)
    assert "--overwrite" in result.output
    assert files("out") == before
    invoke("merge", "a", "b", "--out", "out", "--overwrite")
    assert files("out")[FILE] != before[FILE]


def test_what_is_said_is_json_alone() -> None:
    found = document("transform", "b", "--ref", "a", "--out", "out")
    assert found["model_b"]["kind"] == "folder of a model"
    assert found["versions"]["transformers"] == t.__version__
    assert found["files"] == ["out"]


def test_a_process_of_its_own_builds_the_model() -> None:
    # This one has torchvision imported already, without which transformers may not load.
    command = [sys.executable, "-m", "fxrebasin", "inspect", "a"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "gpt_neox.layers.0" in done.stdout
