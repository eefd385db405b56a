"""What a model leaves free may be chosen in another way, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fxrebasin
from fxrebasin.acting import acted
from fxrebasin.groups import Groups
from fxrebasin.passes.kinds.functional import FunctionalGraph, functional_graph
from fxrebasin.passes.kinds.regauge import centred, with_factors, with_shifts
from fxrebasin.symmetry import Symmetry
from tests.support.elements import elements_of
from tests.support.tiny_transformers import Form, Transformer, drawn

FORMS = {
    "GPT": Form(layers=2),
    "no biases": Form(biases=False),
    "RMSNorm, gate, rotary": Form(width=8, centred=False, biases=False, rotary=True, gate=True),
    "rotary with biases": Form(width=8, rotary=True),
    "ViT": Form(length=9, inputs=4, outputs=4, patches=True),
}
OTHERS = {"ReLU": Form(relu=True)}
Found = tuple[Transformer, Symmetry, Groups, FunctionalGraph, dict[str, Tensor], dict[str, Tensor]]


def found(name: str) -> Found:
    """A model, what acts on it, its state, and that of another one."""
    form = {**FORMS, **OTHERS}[name]
    net, other = drawn(form, 1), drawn(form, 2)
    inputs = net.batch(2, 0)
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    graph = functional_graph(net, (inputs,), {}, None)
    assert symmetry.groups is not None
    assert not isinstance(graph, str)
    states = ({key: value.detach() for key, value in n.state_dict().items()} for n in (net, other))
    return net, symmetry, symmetry.groups, graph, *states


def same_function(net: Transformer, state: dict[str, Tensor]) -> bool:
    """Whether a state computes what the model's own does."""
    inputs = net.batch(20, 3)
    copy = Transformer(net.form).double().eval()
    copy.load_state_dict(state)
    before, after = net(inputs), copy(inputs)
    return bool((before - after).abs().max() <= 1e-12 * before.abs().max())


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("to_reference", [False, True])
def test_factors_of_norms_move_into_what_reads_them(name: str, to_reference: bool) -> None:
    net, symmetry, groups, _, state, other = found(name)
    moved = with_factors(state, groups, symmetry.classes, other if to_reference else None)
    norms = [
        key for key in state if key.endswith(("before.weight", "between.weight", "norm.weight"))
    ]
    for key in norms:
        wanted = other[key] if to_reference else torch.ones_like(state[key])
        torch.testing.assert_close(moved[key], wanted, rtol=1e-14, atol=0)
        assert not torch.allclose(state[key], wanted)
    assert same_function(net, moved)


BIASED = ["GPT", "rotary with biases", "ViT"]


@pytest.mark.parametrize("name", BIASED)
def test_biases_move_into_later_ones(name: str) -> None:
    net, _, groups, graph, state, _ = found(name)
    moved = with_shifts(state, None, graph=graph, groups=groups)
    free = [key for key in state if key.endswith(("value.bias", "before.bias", "between.bias"))]
    free += [] if FORMS[name].rotary else [key for key in state if key.endswith("key.bias")]
    if FORMS[name].rotary:
        free = [key for key in free if not key.endswith("before.bias")]
        assert any(key.endswith("key.bias") for key in state)
    for key in free:
        assert not moved[key].any()
        assert state[key].any()
    assert same_function(net, moved)


@pytest.mark.parametrize("name", BIASED)
def test_midway_to_the_biases_of_a_reference_is_midway_without_biases(name: str) -> None:
    net, _, groups, graph, state, other = found(name)
    moved = with_shifts(state, other, graph=graph, groups=groups)
    assert same_function(net, moved)
    first = [key for key in state if key.endswith(("between.bias", "0.before.bias"))]
    for key in first[FORMS[name].rotary :]:
        torch.testing.assert_close(moved[key], other[key], rtol=1e-12, atol=1e-12)
    ends = [with_shifts(end, None, graph=graph, groups=groups) for end in (other, moved)]
    midway = {key: (other[key] + moved[key]) / 2 for key in state}
    folded = with_shifts(midway, None, graph=graph, groups=groups)
    for key in state:
        between = (ends[0][key] + ends[1][key]) / 2
        torch.testing.assert_close(folded[key], between, rtol=1e-12, atol=1e-12)


def test_biases_of_a_reference_are_put_back_where_they_were() -> None:
    _, _, groups, graph, state, _ = found("GPT")
    back = with_shifts(state, state, graph=graph, groups=groups)
    for key in state:
        torch.testing.assert_close(back[key], state[key], rtol=1e-13, atol=1e-13)


def test_biases_of_keys_behind_rotary_embeddings_stay() -> None:
    _, _, groups, graph, state, _ = found("rotary with biases")
    moved = with_shifts(state, None, graph=graph, groups=groups)
    assert all(shift.parameter != "blocks.0.key.bias" for shift in groups.shifts)
    assert bool(moved["blocks.0.key.bias"].any())


@pytest.mark.parametrize("name", FORMS)
def test_means_that_nothing_sees_are_taken_away(name: str) -> None:
    net, symmetry, groups, graph, state, _ = found(name)
    plain = with_shifts(state, None, graph=graph, groups=groups)
    moved = centred(plain, groups, symmetry.classes)
    assert same_function(net, moved)
    if FORMS[name].centred:
        for key in ("enter.weight", "blocks.0.out.weight", "blocks.0.down.weight"):
            axis = 1 if key == "enter.weight" and not FORMS[name].patches else 0
            assert moved[key].mean(axis).abs().max() < 1e-14
            assert state[key].mean(axis).abs().max() > 1e-3
        folded = moved["blocks.0.up.weight"] * moved["blocks.0.between.weight"]
        assert folded.mean(1).abs().max() < 1e-14
    else:
        assert all(torch.equal(moved[key], plain[key]) for key in plain)


def test_all_choices_one_after_the_other() -> None:
    net, symmetry, groups, graph, state, other = found("GPT")
    state = with_factors(state, groups, symmetry.classes, None)
    state = centred(with_shifts(state, None, graph=graph, groups=groups), groups, symmetry.classes)
    assert same_function(net, state)
    back = with_shifts(
        with_factors(state, groups, symmetry.classes, other), other, graph=graph, groups=groups
    )
    assert same_function(net, back)


@pytest.mark.parametrize("name", [*FORMS, "ReLU"])
def test_an_element_of_the_whole_group_leaves_the_function(name: str) -> None:
    net, symmetry, groups, _, state, _ = found(name)
    elements = elements_of(symmetry)
    assert len(elements) >= 3
    moved = acted(state, groups, symmetry.classes, elements)
    norms = [key for key in state if key.endswith("before.weight")]
    assert all(torch.equal(moved[key], state[key]) for key in norms)
    changed = [key for key in state if not torch.allclose(moved[key], state[key])]
    assert {"head.weight", "enter.weight", "blocks.0.out.weight"} <= {*changed}
    assert same_function(net, moved)


def test_an_element_and_its_inverse() -> None:
    _, symmetry, groups, _, state, _ = found("RMSNorm, gate, rotary")
    elements = elements_of(symmetry)
    inverse = {
        key: torch.linalg.inv(value) if value.dim() == 3 else 1 / value
        for key, value in elements.items()
    }
    there = acted(state, groups, symmetry.classes, elements)
    back = acted(there, groups, symmetry.classes, inverse)
    for key, value in state.items():
        torch.testing.assert_close(back[key], value, rtol=1e-11, atol=1e-11)


def test_where_a_reference_has_a_factor_of_zero_there_is_one_instead() -> None:
    net, symmetry, groups, _, state, other = found("GPT")
    other["norm.weight"][2] = 0
    moved = with_factors(state, groups, symmetry.classes, other)
    wanted = other["norm.weight"].clone()
    wanted[2] = 1
    torch.testing.assert_close(moved["norm.weight"], wanted, rtol=1e-14, atol=0)
    assert same_function(net, moved)


def test_a_factor_of_zero_is_folded_once_nothing_is_added_behind_it() -> None:
    net, symmetry, groups, graph, state, other = found("GPT")
    state["blocks.1.before.weight"][3] = 0
    net.load_state_dict(state)
    with pytest.raises(fxrebasin.errors.InputError, match=r"before\.weight holds zeros where"):
        with_factors(state, groups, symmetry.classes, other)
    moved = with_shifts(state, None, graph=graph, groups=groups)
    moved = with_factors(moved, groups, symmetry.classes, other)
    key = "blocks.1.before.weight"
    torch.testing.assert_close(moved[key], other[key], rtol=1e-14, atol=0)
    assert not moved["blocks.1.query.weight"][:, 3].any()
    assert same_function(net, moved)
