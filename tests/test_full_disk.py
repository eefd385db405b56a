"""What is said where a disk takes no more, in which torch and safetensors are of no help."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fxrebasin.streaming import unfinished
from tests.support.commands import invoke, lay_out

TRANSFORM = ("transform", "nets:Net", "--model-b", "c.pt", "--ref", "a.pt")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("nets", None)
    lay_out(tmp_path)
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.mark.parametrize(
    "words",
    ["basic_ios::clear: iostream error", "[enforce fail at inline.cc:672] . unexpected pos 8 vs 7"],
)
def test_a_file_of_torch_save(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "save", full)
    said = invoke(*TRANSFORM, "--out", "o.pt", code=2).output
    assert "o.pt cannot be written: the disk may be full" in said
    assert words in said
    assert not Path("o.pt").exists()


def test_how_far_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(unfinished, "save_file", full)
    more = ("--out", "o.safetensors", "--max-memory", "1GiB")
    said = invoke(*TRANSFORM, *more, code=2).output
    assert ".o.safetensors.unfinished cannot be written" in said
    assert "No space left on device" in said
    assert not Path("o.safetensors").exists()


def test_a_pipe_is_there_and_no_file_of_weights() -> None:
    os.mkfifo("pipe.pt")
    said = invoke("transform", "nets:Net", *("--model-b", "pipe.pt", "--ref", "a.pt"),
                  *("--out", "o.pt"), code=2).output  # fmt: skip
    assert "pipe.pt is a folder, a pipe or the like; expected a file of weights" in said
