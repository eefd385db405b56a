"""Units that rotary embeddings hold in place behind norms: their factors and means are free."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.acting import acted
from fxrebasin.alignment import Alignment
from fxrebasin.kinds import GroupKind
from fxrebasin.passes.kinds.regauge import centred, with_factors
from tests.fuzz_kinds.attending import Attending, turned
from tests.fuzz_kinds.check import fill, outputs
from tests.support.elements import elements_of

FORMS = {
    "factors of all heads, neighbours": Attending(
        norm="rms", turned="neighbours", inner_norm="rms", grouped=2
    ),
    "factors of each head, halves": Attending(turned="halves", inner_norm="whole rms"),
    "means and factors": Attending(turned="halves", inner_norm="layer"),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_free_is_chosen_as_in_the_reference(name: str, tmp_path: Path) -> None:
    nets = [FORMS[name].build() for _ in "ab"]
    for seed, net in enumerate(nets):
        fill(net, seed)
    net, (inputs, *_) = nets[0], nets[0].batch(20, 3)
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    groups = symmetry.groups
    assert groups is not None
    assert groups.still
    assert not {c.name for c in groups.still} & {c.name for c in symmetry.classes}
    state, wanted = ({k: v.detach() for k, v in n.state_dict().items()} for n in nets)
    moved = with_factors(state, groups, symmetry.classes, wanted)
    moved = centred(moved, groups, symmetry.classes)
    changed = {key for key in state if (moved[key] - state[key]).norm() > 0.1 * state[key].norm()}
    assert {f"blocks.0.attention.norm_{of}.weight" for of in "qk"} <= changed
    means = moved["blocks.0.attention.query.weight"].unflatten(0, (2, 4)).mean(1)
    assert (float(means.abs().max()) < 1e-12) == (name == "means and factors")
    before, after = (outputs(net, item, [inputs]) for item in (state, moved))
    assert (before - after).abs().max() <= 1e-12 * before.abs().max()

    other = copy.deepcopy(net)
    other.load_state_dict(moved)
    found = fxrebasin.match(other, ref=net, example_inputs=inputs, symmetry="all")
    assert isinstance(found, Alignment)
    found.save(tmp_path / "found.safetensors")
    again = Alignment.load(tmp_path / "found.safetensors")
    back = again.apply(moved)
    for key, value in state.items():
        assert float((back[key] - value).norm()) <= 1e-9 * float(value.norm()), key
    there = again.inverse().apply(back)
    for key, value in moved.items():
        torch.testing.assert_close(there[key], value, rtol=1e-9, atol=1e-9)


class FixedBias(nn.Module):
    """Queries have a bias that is trained, keys one that is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.value = nn.Linear(5, 8, bias=False), nn.Linear(5, 3)
        self.bias = nn.Parameter(torch.zeros(4))
        self.register_buffer("fixed", torch.linspace(-1, 1, 4).double())

    def forward(self, x: Tensor) -> Tensor:
        made = self.both(x) + torch.cat([self.bias, self.fixed])
        q, k = (part[:, None] for part in made.chunk(2, -1))
        at = torch.arange(x.shape[1])
        q, k = turned(q, at, "halves"), turned(k, at, "halves")
        return (q @ k.transpose(-1, -2)).softmax(-1).mean(1) @ self.value(x)


def test_what_is_added_to_a_part_of_the_units_holds_them() -> None:
    net = FixedBias().double().eval()
    fixed = net.fixed.clone()
    fill(net, 1)
    net.fixed.copy_(fixed)
    inputs = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert GroupKind.COMPLEX_PAIRS not in {c.kind for c in symmetry.classes}
    assert symmetry.groups is not None
    state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    moved = acted(state, symmetry.groups, symmetry.classes, elements_of(symmetry))
    before, after = (outputs(net, item, [inputs]) for item in (state, moved))
    assert (before - after).abs().max() <= 1e-12 * before.abs().max()
