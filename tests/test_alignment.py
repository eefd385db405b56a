"""Alignments: elements of larger groups between two gauges, as certificates of what was done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.kinds import GroupKind
from fxrebasin.passes.match.canonical import canonical
from fxrebasin.storage.alignment_file import FORMAT
from fxrebasin.storage.certificate import naming, packed, unpacked
from fxrebasin.symmetry import Symmetry
from tests.support.elements import elements_of
from tests.support.randomise import randomise
from tests.support.tiny_transformers import Form, Transformer, drawn

FORMS = {
    "GPT": Form(layers=2, width=12, hidden=9, heads=3),
    "no biases": Form(biases=False, width=12, hidden=9, heads=3),
    "Llama": Form(
        layers=2, width=12, hidden=9, heads=3, centred=False, biases=False, rotary=True, gate=True
    ),
    "rotary with biases": Form(width=8, rotary=True),
    "ViT": Form(length=9, inputs=4, outputs=4, patches=True, width=12, hidden=9, heads=3),
    "ReLU": Form(relu=True, width=12, hidden=9, heads=3),
}


def planted(net: nn.Module, inputs: Tensor) -> tuple[Symmetry, Alignment, nn.Module]:
    """A model that differs from another one by an element of its whole group."""
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.groups is not None
    groups = symmetry.groups.regauged(symmetry.parameters)
    element = Alignment(symmetry.random(3), groups, elements_of(symmetry))
    other = copy.deepcopy(net)
    other.load_state_dict(element.apply(net.state_dict()))
    return symmetry, element, other


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """The largest relative distance of two states' tensors."""
    numbers = [key for key, value in two.items() if value.is_floating_point()]
    return max(float((one[k] - two[k]).norm() / two[k].norm()) for k in numbers)


def other_gauge(net: Transformer) -> None:
    """Factors, shifts and means chosen in another way, by hand."""
    with torch.no_grad():
        for block in net.blocks:
            growth = torch.linspace(0.5, 2, net.form.width, dtype=torch.float64)
            block.before.weight.mul_(growth)  # type: ignore[operator, union-attr]
            if block.before.bias is not None:  # type: ignore[union-attr]
                block.before.bias.mul_(growth)  # type: ignore[operator, union-attr]
            for layer in (block.query, block.key, block.value):
                layer.weight.div_(growth)  # type: ignore[operator, union-attr]
            if net.form.centred:
                rows = torch.linspace(-1, 1, net.form.hidden, dtype=torch.float64)
                block.down.weight.add_(rows)  # type: ignore[operator, union-attr]
            if net.form.biases and not net.form.rotary:
                block.key.bias.add_(0.7)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("name", FORMS)
def test_a_planted_element_is_found(name: str) -> None:
    net = drawn(FORMS[name], 1)
    inputs = net.batch(2, 0)
    _, _, other = planted(net, inputs)
    assert isinstance(other, Transformer)
    other_gauge(other)
    assert torch.allclose(other(net.batch(20, 3)), net(net.batch(20, 3)), rtol=1e-10, atol=1e-10)
    result = fxrebasin.transform(other, ref=net, example_inputs=inputs, symmetry="all")
    report = result.meta["fxrebasin"]
    assert apart(result.state_dict(), net.state_dict()) <= 1e-9
    assert report.distance_before > 1
    assert report.distance_after <= 1e-9 * report.distance_before
    assert report.equivalence.passed
    assert report.certificate.apply(other.state_dict()).keys() == net.state_dict().keys()


MLPS = {
    "tanh": (nn.Tanh(), (7, 12, 9, 11, 8), GroupKind.SIGNED),
    "ReLU": (nn.ReLU(), (7, 12, 9, 11, 8), GroupKind.POSITIVE),
    "linear": (nn.Identity(), (7, 5, 5, 5, 8), GroupKind.GENERAL_LINEAR),
}


def perceptron(name: str) -> nn.Sequential:
    """Four layers with random biases."""
    torch.manual_seed(0)
    bend, sizes, _ = MLPS[name]
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), bend)]
    return nn.Sequential(*layers[:-1]).double()


@pytest.mark.parametrize("name", MLPS)
def test_a_planted_element_of_a_perceptron_is_found(name: str) -> None:
    net, inputs = perceptron(name), torch.randn(3, 7, dtype=torch.float64)
    symmetry, element, other = planted(net, inputs)
    assert {c.kind for c in symmetry.classes} == {MLPS[name][2]}
    assert element.units_moved > 0
    found = fxrebasin.match(other, ref=net, example_inputs=inputs, symmetry="all")
    assert isinstance(found, Alignment)
    assert apart(found.apply(other.state_dict()), net.state_dict()) <= 1e-9


def test_signs_alone_are_exact() -> None:
    net, inputs = perceptron("tanh").float(), torch.randn(3, 7)
    _, _, other = planted(net, inputs)
    result = fxrebasin.transform(other, ref=net, example_inputs=inputs, symmetry="signed")
    certificate = result.meta["fxrebasin"].certificate
    assert certificate.at_most_signed
    for key, value in result.state_dict().items():
        assert torch.equal(value, net.state_dict()[key])
    assert any(bool((item < 0).any()) for item in certificate.elements.values())


def aligned(name: str) -> tuple[Transformer, Transformer, Alignment]:
    """Two networks, and how the second is aligned with the first."""
    net, other = drawn(FORMS[name], 1), drawn(FORMS[name], 2)
    inputs = net.batch(2, 0)
    certificate = fxrebasin.match(other, ref=net, example_inputs=inputs, symmetry="all")
    assert isinstance(certificate, Alignment)
    return net, other, certificate


def test_the_result_is_in_the_gauge_of_the_reference() -> None:
    net, other, certificate = aligned("GPT")
    moved, wanted = certificate.apply(other.state_dict()), net.state_dict()
    for key in wanted:
        scale = key.endswith(("before.weight", "between.weight", "norm.weight"))
        shift = key.endswith(("before.bias", "between.bias"))
        if scale or shift:
            torch.testing.assert_close(moved[key], wanted[key], rtol=1e-13, atol=1e-14)
    means = ("blocks.0.out.weight", "blocks.1.down.weight")
    for key in means:
        torch.testing.assert_close(moved[key].mean(0), wanted[key].mean(0), rtol=0, atol=1e-13)
        assert not torch.allclose(moved[key], wanted[key])


def test_midway_is_midway_between_canonical_forms() -> None:
    """Biases of keys and values are those of the reference behind norms that add nothing."""
    net, other, certificate = aligned("GPT")
    a, moved = net.state_dict(), certificate.apply(other.state_dict())
    midway = {key: (a[key] + moved[key]) / 2 for key in a}
    symmetry = fxrebasin.analyze(net, net.batch(2, 0), symmetry="all")
    assert symmetry.groups is not None
    of_a, of_moved, found = (
        canonical(state, symmetry.groups, symmetry.permuted).state for state in (a, moved, midway)
    )
    for key in a:
        between = (of_a[key] + of_moved[key]) / 2
        torch.testing.assert_close(found[key], between, rtol=1e-11, atol=1e-12)
    key = "blocks.0.value.weight"
    assert not torch.allclose(of_a[key], of_moved[key])


def test_the_straight_line_is_that_between_canonical_forms() -> None:
    """What a factor holds does not matter to the line, once both models have the same."""
    net, other, certificate = aligned("no biases")
    moved = certificate.apply(other.state_dict())
    plain, form = copy.deepcopy(net), copy.deepcopy(other)
    with torch.no_grad():
        for folded, state in ((plain, net.state_dict()), (form, moved)):
            folded.load_state_dict(state)
            for block in folded.blocks:
                for layer in (block.query, block.key, block.value):
                    layer.weight.mul_(block.before.weight)  # type: ignore[operator, union-attr]
                block.before.weight.fill_(1)  # type: ignore[operator, union-attr]
    inputs = net.batch(9, 4)
    lines = []
    for a, b in ((net.state_dict(), moved), (plain.state_dict(), form.state_dict())):
        middle = Transformer(net.form).double().eval()
        middle.load_state_dict({key: (a[key] + b[key]) / 2 for key in a})
        lines.append(middle(inputs))
    torch.testing.assert_close(*lines, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_the_inverse_brings_the_state_back(name: str) -> None:
    _, other, certificate = aligned(name)
    state = other.state_dict()
    moved = certificate.apply(state)
    assert apart(moved, state) > 0.1
    assert apart(certificate.inverse().apply(moved), state) <= 1e-11
    around = certificate.inverse().compose(certificate)
    assert around.is_identity
    assert apart(around.apply(state), state) <= 1e-11


def test_composition_goes_through_the_gauge_in_between() -> None:
    first, second, third = (drawn(FORMS["GPT"], seed) for seed in (1, 2, 3))
    inputs = first.batch(2, 0)
    one = fxrebasin.match(third, ref=second, example_inputs=inputs, symmetry="all")
    between = copy.deepcopy(third)
    between.load_state_dict(one.apply(third.state_dict()))
    two = fxrebasin.match(between, ref=first, example_inputs=inputs, symmetry="all")
    assert isinstance(one, Alignment)
    assert isinstance(two, Alignment)
    both = two.compose(one)
    wanted = two.apply(between.state_dict())
    assert apart(both.apply(third.state_dict()), wanted) <= 1e-11
    with pytest.raises(InputError, match="do not follow each other"):
        one.compose(two)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    _, other, certificate = aligned("rotary with biases")
    path = tmp_path / "alignment.safetensors"
    certificate.save(path)
    read = Alignment.load(path)
    assert read == certificate
    assert read.digest() == certificate.digest()
    state = other.state_dict()
    for key, value in read.apply(state).items():
        assert torch.equal(value, certificate.apply(state)[key])
    with pytest.raises(CheckpointError, match="exists"):
        certificate.save(path)
    with pytest.raises(CheckpointError, match="not a permutation"):
        fxrebasin.Permutation.load(path)
    content = path.read_bytes()
    for at in (3, 40, len(content) // 2):
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(content[:at])
        with pytest.raises(CheckpointError, match="broken"):
            Alignment.load(broken)


def _first(document: dict[str, Any], key: str) -> Any:
    """What the first class that has it has under a key."""
    return next(own[key] for own in document["kinds"].values() if own[key])


def _edited_part(document: dict[str, Any]) -> None:
    _first(document, "parts")[0][0][4] = 10**30


def _edited_variance(document: dict[str, Any]) -> None:
    _first(document, "parts")[0][1] = 2


def _edited_power(document: dict[str, Any]) -> None:
    _first(document, "scales")[0][1] = 10**30


def _edited_factors(document: dict[str, Any]) -> None:
    document["source"]["factors"] = {"h": 10**30}


def _edited_copies(document: dict[str, Any]) -> None:
    document["turned"][0]["count"] += 1


def _edited_class(document: dict[str, Any]) -> None:
    document["classes"][0]["count"] = 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edited_part, "is not in the layout"),
        (_edited_variance, "found 2 where a number from -1 to 1 belongs"),
        (_edited_power, "found 10{30} where a number from -1024 to 1024 belongs"),
        (_edited_factors, "found 10{30} where a number from 0 to "),
        (_edited_copies, r"class .* is said to have \d+ copies, and has \d+"),
        (_edited_class, "class .* is said to have 0 copies, and has 1"),
    ],
)
def test_numbers_that_no_alignment_has_are_refused(
    edit: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    _, _, certificate = aligned("Llama")
    path = tmp_path / "alignment.safetensors"
    certificate.save(path)
    with naming(path):
        tensors, document = unpacked(path, FORMAT, "an alignment")
    path.write_bytes(packed(FORMAT, tensors, document))
    assert Alignment.load(path) == certificate
    edit(document)
    path.write_bytes(packed(FORMAT, tensors, document))
    with pytest.raises(CheckpointError, match=rf"alignment\.safetensors holds .*: .*{message}"):
        Alignment.load(path)


def test_another_state_is_refused_where_biases_moved() -> None:
    net, other, certificate = aligned("GPT")
    with pytest.raises(InputError, match="this is another state"):
        certificate.apply(net.state_dict())
    half = {key: value.half() for key, value in other.state_dict().items()}
    rounded = certificate.apply(half)
    assert all(value.dtype == torch.float16 for value in rounded.values())
    exact = certificate.apply(other.state_dict())
    assert apart({k: v.double() for k, v in rounded.items()}, exact) < 1e-2


def test_any_state_is_taken_where_no_biases_moved() -> None:
    net, _, certificate = aligned("Llama")
    inputs = net.batch(9, 4)
    copied = copy.deepcopy(net)
    copied.load_state_dict(certificate.apply(net.state_dict()))
    torch.testing.assert_close(copied(inputs), net(inputs), rtol=1e-10, atol=1e-10)


def test_an_element_outside_its_group_is_refused() -> None:
    net = drawn(FORMS["GPT"], 1)
    symmetry, element, _ = planted(net, net.batch(2, 0))
    groups = symmetry.groups
    assert groups is not None
    kinds = {c.kind: c.name for c in symmetry.classes}
    stream = kinds[GroupKind.ORTHOGONAL_FIXING_ONES]
    for factor, fault in ((2.0, "is not orthogonal"), (float("nan"), "not finite")):
        wrong = {**element.elements, stream: element.elements[stream] * factor}
        with pytest.raises(InputError, match=fault):
            Alignment(element.permutation, groups, wrong)
    turned = torch.eye(12, dtype=torch.float64)
    turned[0, 0] = -1
    with pytest.raises(InputError, match="vector of ones"):
        Alignment(element.permutation, groups, {stream: turned[None]})
    name = kinds[GroupKind.PERMUTATION]
    twice = torch.full((1, next(c.size for c in symmetry.classes if c.name == name)), 2.0)
    with pytest.raises(InputError, match="holds numbers other than 1"):
        Alignment(element.permutation, groups, {name: twice})
    with pytest.raises(InputError, match="classes that do not exist"):
        Alignment(element.permutation, groups, {"nothing": turned[None]})


def test_many_models_are_brought_into_one_basis() -> None:
    first = drawn(FORMS["GPT"], 1)
    inputs = first.batch(2, 0)
    _, _, second = planted(first, inputs)
    assert isinstance(second, Transformer)
    other_gauge(second)
    _, _, third = planted(second, inputs)
    models = [first, second, third]
    found = fxrebasin.align_many(models, example_inputs=inputs, symmetry="all")
    for certificate, net in zip(found, models, strict=True):
        assert isinstance(certificate, Alignment)
        assert apart(certificate.apply(net.state_dict()), first.state_dict()) <= 1e-9


def test_rounds_over_many_models_raise_their_agreement() -> None:
    nets = []
    for seed in range(4):
        torch.manual_seed(seed)
        layers = (nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 8))
        nets.append(nn.Sequential(*layers).double())
    inputs = torch.randn(3, 7, dtype=torch.float64)
    pairwise = [
        fxrebasin.match(net, ref=nets[0], example_inputs=inputs, symmetry="signed") for net in nets
    ]
    joint = fxrebasin.align_many(nets, example_inputs=inputs, symmetry="signed")
    sizes = []
    for certificates in (pairwise, joint):
        total = {key: torch.zeros_like(value) for key, value in nets[0].state_dict().items()}
        for certificate, net in zip(certificates, nets, strict=True):
            assert isinstance(certificate, Alignment)
            for key, value in certificate.apply(net.state_dict()).items():
                total[key] += value
        sizes.append(sum(float(value.square().sum()) for value in total.values()))
    assert sizes[1] > 1.01 * sizes[0]


def test_the_merge_of_a_model_with_itself_in_another_basis_is_that_model() -> None:
    net = drawn(FORMS["Llama"], 1)
    inputs = net.batch(2, 0)
    _, _, other = planted(net, inputs)
    merged = fxrebasin.merge_many([net, other], "merge_many", example_inputs=inputs, symmetry="all")
    assert apart(merged.state_dict(), net.state_dict()) <= 1e-9
    others = "is for the methods 'activation', 'learned', 'merge_many'"
    with pytest.raises(InputError, match=others):
        fxrebasin.merge_many(
            [net, other], "cycle_consistent", example_inputs=inputs, symmetry="all"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_rounded_once_rounds_about_as_the_model_does(dtype: torch.dtype) -> None:
    form = replace(FORMS["Llama"], width=32, hidden=48, heads=4)
    net, other = (drawn(form, seed).to(dtype) for seed in (1, 2))
    inputs = net.batch(4, 0)
    result = fxrebasin.transform(other, ref=net, example_inputs=inputs, symmetry="all")
    report = result.meta["fxrebasin"]
    own, rounded = report.rounding
    assert 0 < rounded <= 3 * own
    assert report.equivalence.passed
    assert {tensor.dtype for tensor in result.state_dict().values()} == {dtype}


def test_the_aligned_model_is_exported(tmp_path: Path) -> None:
    net, other = (drawn(FORMS["GPT"], seed).float() for seed in (1, 2))
    inputs = net.batch(2, 0)
    result = fxrebasin.transform(other, ref=net, example_inputs=inputs, symmetry="all")
    report = fxrebasin.export_onnx(result, tmp_path / "b.onnx", inputs)
    assert report.passed
    assert fxrebasin.verify(other, tmp_path / "b.onnx", inputs).passed


def test_a_planted_element_is_found_behind_batch_norms() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    more = (nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU())
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    net = randomise(nn.Sequential(*layers, *more, *ends).eval()).double()
    inputs = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    symmetry, _, other = planted(net, inputs)
    assert {c.kind for c in symmetry.classes} == {GroupKind.POSITIVE}
    assert apart(other.state_dict(), net.state_dict()) > 0.1
    found = fxrebasin.match(other, ref=net, example_inputs=inputs, symmetry="all")
    assert isinstance(found, Alignment)
    moved = found.apply(other.state_dict())
    assert apart(moved, net.state_dict()) <= 1e-9


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_alignments_of_batch_norms_are_equal_to_what_their_files_hold(
    act: Callable[[], nn.Module], tmp_path: Path
) -> None:
    a, b = (
        randomise(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), act(), nn.Linear(5, 2)), seed)
        for seed in (1, 2)
    )
    found = fxrebasin.match(b.eval(), a.eval(), torch.randn(4, 3), symmetry="all")
    assert isinstance(found, Alignment)
    found.save(tmp_path / "found.safetensors")
    read = Alignment.load(tmp_path / "found.safetensors")
    assert read == found
    assert read.compose(found.inverse()).is_identity


def test_moments_of_an_optimiser_go_with_signs() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net, other = (
            nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double() for _ in "ab"
        )
        inputs, targets = torch.randn(12, 4).double(), torch.randn(12, 3).double()
    found = fxrebasin.match(other, ref=net, example_inputs=inputs, symmetry="signed")
    assert isinstance(found, Alignment)
    assert any(bool((item < 0).any()) for item in found.elements.values())
    same = copy.deepcopy(other)
    same.load_state_dict(found.apply(other.state_dict()))
    slopes = []
    for model in (other, same):
        loss = (model(inputs) - targets).square().mean()
        names = [name for name, _ in model.named_parameters()]
        slopes.append(dict(zip(names, torch.autograd.grad(loss, model.parameters()), strict=True)))
    for power in (1, 2):
        before, after = ({name: g**power for name, g in own.items()} for own in slopes)
        moved = found.apply_to_moments(before, power=power)
        for name, value in after.items():
            torch.testing.assert_close(moved[name], value, rtol=1e-12, atol=1e-15)


def test_moments_of_an_optimiser_are_refused_where_more_acts() -> None:
    for name in ("GPT", "Llama", "ReLU"):
        _, other, certificate = aligned(name)
        moments = {key: torch.ones_like(p) for key, p in other.named_parameters()}
        with pytest.raises(InputError, match="Start the optimiser anew"):
            certificate.apply_to_moments(moments)
    with pytest.raises(InputError, match="power"):
        certificate.apply_to_moments(moments, power=0)
