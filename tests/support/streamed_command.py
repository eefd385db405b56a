"""The command on the small checkpoints of `streamed`: what it is given and what it leaves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.commands import invoke
from tests.support.streamed import STACK, Case, save_shards

SOME = ("--max-memory", "2GiB")


def save_case(folder: Path, case: Case) -> None:
    """a and b as files of safetensors, and b in shards."""
    save_file(case.a, folder / "a.safetensors", {"format": "pt"})
    save_file(case.b, folder / "b.safetensors", {"format": "pt"})
    save_shards(folder / "shards", case.b, 4)


def transform(b: str, out: str, *more: object, code: int = 0) -> Any:
    """Run the command on b, towards a."""
    given = ("transform", STACK, "--model-b", b, "--ref", "a.safetensors", "--out", out)
    return invoke(*given, *more, code=code)


def of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def is_a(found: dict[str, torch.Tensor], case: Case) -> bool:
    """Whether tensors are those of a, bit for bit."""
    same = (torch.equal(found[n], t) for n, t in case.a.items())
    return found.keys() == case.a.keys() and all(same)


def interrupt_after(patch: pytest.MonkeyPatch, kind: type[Any], files: int) -> None:
    """Let a run be interrupted when it has written some files.

    Args:
        patch: is undone by the caller.
        kind: of what is written, with a method `write`.
        files: how many are written before.
    """
    write, left = kind.write, [files]

    def interrupted(self: Any, *given: Any) -> None:
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        left[0] -= 1
        write(self, *given)

    patch.setattr(kind, "write", interrupted)
