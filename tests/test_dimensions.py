"""What is found in networks of all sorts is all that there is, and choices in it change nothing."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fxrebasin
from fxrebasin.acting import acted
from fxrebasin.kinds import GroupKind
from fxrebasin.passes.kinds.functional import FunctionalGraph, functional_graph
from fxrebasin.passes.kinds.regauge import centred, with_factors, with_shifts
from fxrebasin.show.views import symmetry_view
from fxrebasin.symmetry import Symmetry
from tests.fuzz_kinds.attending import Attending
from tests.fuzz_kinds.check import Verdict, check, fill, outputs
from tests.fuzz_kinds.convolving import Convolving
from tests.fuzz_kinds.words import Form
from tests.support.elements import elements_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about modules that are in use

NONE = (False, False, False, False)
LLAMA = Attending(norm="rms", turned="halves", given_places=True, mlp="swiglu", biases=NONE)
QUICK: dict[str, Form] = {
    "grouped queries, fused": Attending(grouped=2, fused="qkv"),
    "positions are given": Attending(norm="rms", turned="halves", given_places=True, mlp="swiglu"),
    "scales of layers": Attending(layer_scale=True),
    "one more than a weight": Attending(norm="gemma"),
    "three embeddings": Attending(norm="rms", kinds=2, places="learned"),
    "ConvNeXt": Convolving(norm="channels", block="convnext", bend="gelu", layer_scale=True),
    "GroupNorm": Convolving(norm="group", bend="silu"),
    "tied": Attending(tied=True, places="learned"),
    "one key head, rotary": Attending(grouped=2, turned="halves"),
    "norms of queries that are turned": Attending(turned="halves", inner_norm="layer"),
    "a part of each head is turned": Attending(turned="part", fused="by head"),
}
SLOW: dict[str, Form] = {
    "grouped queries": Attending(width=8, heads=4, grouped=2),
    "words, places and kinds": Attending(kinds=2, places="embedded"),
    "one more than a weight, tied": Attending(norm="gemma", tied=True),
    "one more than a weight, after all": Attending(norm="gemma", order="both", final_norm=False),
    "norms behind the stream": Attending(norm="rms", order="post", final_norm=False),
    "fused by head": Attending(fused="by head"),
    "a part of the only key head is turned": Attending(grouped=2, turned="part", fused="qkv"),
    "one norm of all queries": Attending(turned="neighbours", grouped=2, inner_norm="whole rms"),
    "fused, rotary": Attending(fused="qkv", turned="neighbours"),
    "Llama": LLAMA,
    "norms of queries": Attending(inner_norm="layer"),
    "norms on both sides": Attending(order="both"),
    "no factors": Attending(affine="none"),
    "keys and values fused": Attending(fused="kv"),
    "depthwise": Convolving(depthwise=True),
    "groups of channels": Convolving(groups=2),
    "GroupNorm, linear": Convolving(norm="group", bend="none"),
    "InstanceNorm": Convolving(norm="instance", bend="silu"),
    "maps": Convolving(end="flatten", pool="none"),
}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_dimension_is_the_nullity(name: str) -> None:
    found = check({**QUICK, **SLOW}[name], 1)
    assert found.verdict is Verdict.WELL, found.text()


Found = tuple[Any, Symmetry, FunctionalGraph, dict[str, Tensor], dict[str, Tensor]]


def analysed(form: Form) -> Found:
    """A network, what acts on it, and the states of it and of another one."""
    nets = [form.build() for _ in "ab"]
    for seed, net in enumerate(nets):
        fill(net, seed)
    net = nets[0]
    symmetry = fxrebasin.analyze(net, net.batch(2, 0), symmetry="all")
    graph = functional_graph(net, net.batch(2, 0), {}, None)
    assert not isinstance(graph, str)
    states = [{k: v.detach() for k, v in n.state_dict().items()} for n in nets]
    return net, symmetry, graph, states[0], states[1]


def same(net: Any, one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether a network computes the same with two states."""
    inputs = net.batch(20, 3)
    before, after = outputs(net, one, inputs), outputs(net, two, inputs)
    return bool((before - after).abs().max() <= 1e-11 * before.abs().max())


def test_a_mean_over_two_groups_of_channels_is_not_one_of_each() -> None:
    found = check(Convolving(groups=2, bend="silu", block="convnext"))
    assert found.verdict is Verdict.LESS  # of each group by itself, the mean is seen
    assert found.dimension == 12


def test_the_same_is_taken_off_all_places() -> None:
    net, symmetry, graph, state, other = analysed(Attending(kinds=2, places="learned"))
    assert symmetry.groups is not None
    moved = with_shifts(state, other, graph=graph, groups=symmetry.groups)
    mean = other["places"].mean((0, 1))
    torch.testing.assert_close(moved["places"].mean((0, 1)), mean)
    assert same(net, state, moved)


class Scaled(nn.Module):
    """Multiplies by one more than a weight, and by another sum with it where that is asked for."""

    def __init__(self, further: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6, bias=False), nn.Linear(6, 5)
        self.scale, self.further = nn.Parameter(torch.zeros(6)), further

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu() * (1 + self.scale)
        found: Tensor = self.second(hidden * (self.scale + self.further))
        return found


@pytest.mark.parametrize(("further", "free"), [(1.0, 6 + 6), (2.0, 6), (0.0, 6)])
def test_a_weight_that_is_used_with_two_numbers_stays(further: float, free: int) -> None:
    net = Scaled(further).double().eval()
    fill(net, 3)
    symmetry = fxrebasin.analyze(net, torch.randn(3, 4).double(), symmetry="all")
    assert symmetry.dimension() == free
    assert symmetry.groups is not None
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    moved = acted(state, symmetry.groups, symmetry.classes, elements_of(symmetry))
    moved = with_factors(moved, symmetry.groups, symmetry.classes, None)
    x = (torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)
    before, after = outputs(net, state, x), outputs(net, moved, x)
    assert (before - after).abs().max() <= 1e-11 * before.abs().max()


def test_parts_of_a_fused_bias_move() -> None:
    net, symmetry, graph, state, other = analysed(Attending(fused="qkv", kinds=2))
    groups = symmetry.groups
    assert groups is not None
    plain = with_shifts(state, None, graph=graph, groups=groups)
    name = "blocks.0.attention.qkv.bias"
    assert not plain[name][6:].any()  # of keys and values
    assert plain[name][:6].any()
    assert state[name][6:].all()
    moved = with_shifts(state, other, graph=graph, groups=groups)
    assert same(net, state, plain)
    assert same(net, state, moved)
    midway = {key: (other[key] + moved[key]) / 2 for key in state}
    ends = [with_shifts(end, None, graph=graph, groups=groups) for end in (other, state)]
    folded = with_shifts(midway, None, graph=graph, groups=groups)
    for key in state:
        between = (ends[0][key] + ends[1][key]) / 2
        torch.testing.assert_close(folded[key], between, rtol=1e-12, atol=1e-12)


def test_means_are_those_of_each_head_and_not_over_heads() -> None:
    net, symmetry, _, state, other = analysed(Attending(grouped=2, inner_norm="layer"))
    assert symmetry.groups is not None
    moved = centred(state, symmetry.groups, symmetry.classes)
    name = "blocks.0.attention.query.weight"
    heads = moved[name].view(2, 3, -1)
    assert heads.mean(1).abs().max() < 1e-14
    assert state[name].view(2, 3, -1).mean(1).abs().max() > 1e-3
    assert heads.mean(0).abs().max() > 1e-3
    assert same(net, state, moved)
    towards = centred(state, symmetry.groups, symmetry.classes, other)
    assert same(net, state, towards)


def test_means_are_taken_away_behind_the_scales_of_layers() -> None:
    net, symmetry, _, state, _ = analysed(Attending(layer_scale=True))
    assert symmetry.groups is not None
    moved = centred(state, symmetry.groups, symmetry.classes)
    scaled = moved["blocks.0.mlp.down.weight"] * moved["blocks.0.scales.1"][:, None]
    assert scaled.mean(0).abs().max() < 1e-14
    assert same(net, state, moved)


def test_scales_of_layers_move_into_what_writes() -> None:
    net, symmetry, _, state, other = analysed(Attending(layer_scale=True))
    assert symmetry.groups is not None
    moved = with_factors(state, symmetry.groups, symmetry.classes, other)
    torch.testing.assert_close(moved["blocks.0.scales.0"], other["blocks.0.scales.0"])
    assert same(net, state, moved)
    assert symmetry.classes[0].kind is GroupKind.ORTHOGONAL_FIXING_ONES


def test_means_in_front_of_norms_are_free_whatever_the_group() -> None:
    net, symmetry, _, state, _ = analysed(Attending(order="post"))
    assert symmetry.groups is not None
    assert symmetry.classes[0].kind is GroupKind.PERMUTATION
    moved = centred(state, symmetry.groups, symmetry.classes)
    assert moved["blocks.0.mlp.down.weight"].mean(0).abs().max() < 1e-14
    assert state["blocks.0.mlp.down.weight"].mean(0).abs().max() > 1e-3
    assert same(net, state, moved)


def test_a_limit_names_the_module_and_the_line() -> None:
    _, symmetry, *_ = analysed(Attending())
    text = symmetry.explain("blocks.0.mlp.up.weight", 0)
    assert "No larger one: aten.gelu.default in blocks.0.mlp at " in text
    assert "attending.py" in text
    assert "return self.down(_BENDS[self.form.mlp](self.up(x))) computes element by element" in text


def test_a_network_with_running_means_and_nothing_that_takes_them_back() -> None:
    form = Convolving(norm="plain batch", biases=False)
    found = check(form)
    assert found.verdict is Verdict.WELL
    assert found.dimension == 0  # buffers move with units, and no parameters alone do that


def test_inspect_tells_groups_and_their_dimension() -> None:
    net = Attending(norm="rms").build()
    symmetry = fxrebasin.analyze(net, net.batch(2, 0), symmetry="all")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(symmetry_view("net", symmetry))
    text = console.export_text()
    free = sum(gauge.dimension for gauge in symmetry.gauges)
    assert 0 < free < symmetry.dimension()
    assert f"{symmetry.dimension()}, of which others make up for {free}" in text
    assert "orthogonal" in text
    console.print(symmetry_view("net", fxrebasin.analyze(net, net.batch(2, 0))))
    assert "dimension of the group" not in console.export_text()
