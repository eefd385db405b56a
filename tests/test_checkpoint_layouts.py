"""A checkpoint with its units in another order is loaded by its library, and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.permutation import Permutation
from fxrebasin.storage.checkpoint import read_checkpoint, write_checkpoint
from tests.support.checkpoint_layouts import LAYOUTS, Net, net
from tests.support.randomise import TOLERANCE, difference, outputs

INPUT = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double(),)


@pytest.fixture(scope="module")
def order() -> Permutation:
    found = fxrebasin.analyze(Net(), torch.zeros(1, 3, 6, 6)).random(seed=1)
    assert "fc.weight" in found.layout
    assert "up.weight" in found.layout
    return found


def assert_bits(left: Any, right: Any) -> None:
    """The same tensors by name, bit for bit."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def assert_same_function(left: nn.Module, right: nn.Module) -> None:
    made = [outputs(module.double().eval(), INPUT, {}) for module in (left, right)]
    assert difference(*made) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_permuted_checkpoint_is_loaded_by_its_library(
    tmp_path: Path, order: Permutation, name: str, dtype: torch.dtype
) -> None:
    layout, model, average = LAYOUTS[name], net(0, dtype), net(7, dtype)
    path = layout.save(model, average, tmp_path)
    found = read_checkpoint(path, Net())
    kept = {n: t for n, t in model.state_dict().items() if n in found.state}
    if name != "without counts":
        assert_bits(dict(found.state), kept)
    out = tmp_path / "out" / path.name
    state = order.permute_state_dict(found.state)
    assert write_checkpoint(out, found, state, others=order.permute_tensor)
    moved = layout.load(out)
    if name != "without counts":
        assert_bits(dict(moved.state_dict()), order.permute_state_dict(model.state_dict()))
    assert not torch.equal(moved.fc.weight, model.fc.weight)
    assert_same_function(moved, layout.load(path))
    if layout.load_average is not None:
        assert_same_function(layout.load_average(out), layout.load_average(path))
