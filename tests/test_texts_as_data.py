"""A folder of texts as the data on which units of two folders' models are matched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fxrebasin.cli import main

pytest.importorskip("transformers")

WORDS = [
    "a",
    "rose",
    "is",
    "rarely",
    "no",
    "thorn",
    "but",
    "the",
    "garden",
    "keeps",
    "each",
    "of",
    "them",
    "warm",
]


def invoke(*arguments: object, code: int = 0) -> str:
    """Run a command in this process; what it prints."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    return result.output


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two small decoders with a tokenizer of words, and texts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    monkeypatch.chdir(tmp_path)
    ids = {word: index for index, word in enumerate(["?", *WORDS])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=len(ids), n_positions=32,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    for seed, name in enumerate("ab"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(config)
            for parameter in model.parameters():
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(name)
    Path("texts").mkdir()
    for index in range(4):
        order = WORDS[index:] + WORDS[:index]
        Path(f"texts/{index}.txt").write_text(" ".join(order * 8), encoding="utf-8")
    return tmp_path


def test_units_are_matched_on_texts(folders):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    printed = invoke("merge", "a", "b", "--out", "m", "--method", "activation", "--data", "texts")
    assert "activation" in printed
    merged = AutoModelForCausalLM.from_pretrained("m")
    first = AutoModelForCausalLM.from_pretrained("a")
    assert not torch.equal(merged.transformer.wte.weight, first.transformer.wte.weight)
    assert AutoTokenizer.from_pretrained("m")("the garden")["input_ids"] == [
        1 + WORDS.index("the"),
        1 + WORDS.index("garden"),
    ]


def test_folders_that_are_no_data_are_refused(folders):
    Path("empty").mkdir()
    command = ("merge", "a", "b", "--out", "m", "--method", "activation", "--data")
    assert "there are no texts" in invoke(*command, "empty", code=2)
    assert not Path("m").exists()
