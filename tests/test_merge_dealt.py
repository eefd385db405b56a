"""`merge_many` and `align_many` in rounds, by one process and by several of one group."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.merge import align_many, merge_many
from fxrebasin.storage.checkpoint import save_state_dict
from tests.support.ranks import start
from tests.support.small_nets import Residual, unsettled
from tests.test_merge_many import NETS, assert_same, models_of

COUNT = 5
WEIGHTS = [3.0, 1.0, 2.0, 1.5, 1.0]
INPUTS = NETS["grouped"][1]

_EACH = """
import os, sys, torch, torch.distributed as dist
import fxrebasin
from fxrebasin.errors import FxRebasinError, InputError
from fxrebasin.ranks import RankLostError
from fxrebasin.storage.checkpoint import save_state_dict
from tests.support.small_nets import Residual, unsettled
from tests.test_merge_dealt import COUNT, INPUTS, WEIGHTS

dist.init_process_group("gloo")
rank, count = dist.get_rank(), dist.get_world_size()
os.chdir(f"rank-{rank}")
paths = [f"{k}.safetensors" for k in range(COUNT)]
given = dict(model=unsettled(Residual(), 9), example_inputs=INPUTS, weights=WEIGHTS)
given["group"] = dist.group.WORLD

def refused(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

def save(name, model):
    save_state_dict(f"{name}.safetensors", model.state_dict())

save("mean", fxrebasin.merge_many(paths, **given))
save("rounds", fxrebasin.merge_many(paths, "rounds", **given))
found = fxrebasin.align_many(paths, "rounds", **given)
torch.save([p.arrays for p in found], "found.pt")
assert [p.relies_on for p in found]

# What one process cannot do, all are told.
broken = [*paths[:-1], "broken.safetensors"]
last = rank == count - 1
for method in ("mean", "rounds"):
    refused(FxRebasinError if last else RankLostError, "broken", lambda: fxrebasin.merge_many(
        broken, method, **given))
refused(InputError, "same call", lambda: fxrebasin.merge_many(paths, seed=rank, **given))
refused(InputError, "wait for each other", lambda: fxrebasin.merge_many(
    paths, "merge_many", **given))
other = dist.new_group([0])
mine = {**given, "group": other}
if rank:
    refused(InputError, "does not belong", lambda: fxrebasin.merge_many(paths, **mine))
else:
    nothing = ["no.pt"] * COUNT
    refused(FxRebasinError, "does not exist", lambda: fxrebasin.merge_many(nothing, **mine))
dist.destroy_process_group()
print("fine")
"""


def length(model: nn.Module) -> float:
    """Squared, of the parameters: of a mean it grows with the agreement of all pairs."""
    return sum(float(p.detach().double().square().sum()) for p in model.parameters())


@pytest.mark.parametrize("name", NETS)
def test_copies_in_other_orders_merge_back(name: str) -> None:
    inputs = NETS[name][1]
    first = models_of(name, 1)[0]
    symmetry = fxrebasin.analyze(first, inputs)
    copies = [fxrebasin.apply(first, symmetry.random(k), inputs) for k in range(3)]
    merged = merge_many([first, *copies], "rounds", example_inputs=inputs)
    assert_same(merged, first)


def test_rounds_agree_more_than_aligning_with_the_first() -> None:
    models = models_of("grouped", COUNT)
    given: dict[str, Any] = {"example_inputs": INPUTS, "weights": WEIGHTS}
    with_first = [fxrebasin.match(m, ref=models[0], example_inputs=INPUTS) for m in models]
    moved = [fxrebasin.apply(m, p, INPUTS) for m, p in zip(models, with_first, strict=True)]
    merged = merge_many(models, "rounds", **given)
    assert length(merged) > length(merge_many(moved, **given))
    assert length(merged) > 1.1 * length(merge_many(models, **given))
    found = align_many(models, "rounds", **given)
    assert found[0].is_identity
    again = [fxrebasin.apply(m, p, INPUTS) for m, p in zip(models, found, strict=True)]
    assert_same(merge_many(again, **given), merged)


def test_a_group_has_to_be_one() -> None:
    with pytest.raises(InputError, match="group is a str"):
        merge_many(models_of("grouped", 1), group="world")


@pytest.mark.parametrize(
    "count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 4, 6))]
)
def test_processes_find_what_one_does_and_read_their_own_files(count: int, tmp_path: Path) -> None:
    for k, model in enumerate(models_of("grouped", COUNT)):
        save_state_dict(tmp_path / f"{k}.safetensors", model.state_dict())
    paths = [str(tmp_path / f"{k}.safetensors") for k in range(COUNT)]
    given: dict[str, Any] = {"example_inputs": INPUTS, "weights": WEIGHTS}
    given["model"] = unsettled(Residual(), 9)
    for method in ("mean", "rounds"):
        merged = merge_many(paths, method, **given)
        save_state_dict(tmp_path / f"{method}.safetensors", merged.state_dict())
    alone = align_many(paths, "rounds", **given)
    for rank in range(count):
        folder = tmp_path / f"rank-{rank}"
        folder.mkdir()
        for k in {0, *range(COUNT * rank // count, COUNT * (rank + 1) // count)}:
            shutil.copy(paths[k], folder)
        (folder / "broken.safetensors").write_bytes(b"nothing")
    for process, said in start([["-c", _EACH]] * count, tmp_path):
        assert process.returncode == 0, said
    for rank in range(count):
        folder = tmp_path / f"rank-{rank}"
        for name in ("mean.safetensors", "rounds.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
        every = torch.load(folder / "found.pt", weights_only=False)
        for found, expected in zip(every, alone, strict=True):
            assert found.keys() == expected.arrays.keys()
            assert all((found[name] == array).all() for name, array in expected.arrays.items())
