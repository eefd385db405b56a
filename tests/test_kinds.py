"""Which groups act on the classes of a model, held against what the model computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.kinds import GroupKind
from tests.support.nullity import nullity
from tests.support.tiny_transformers import Form, dimension_of, drawn

FORMS = {
    "GPT": Form(),
    "two blocks": Form(layers=2, width=4, hidden=3, length=4, inputs=5, outputs=5),
    "RMSNorm": Form(centred=False, biases=False),
    "no biases": Form(biases=False),
    "ReLU": Form(relu=True),
    "Llama": Form(
        width=8, inputs=11, outputs=11, centred=False, biases=False, rotary=True, gate=True
    ),
    "rotary with biases": Form(width=8, inputs=11, outputs=11, rotary=True),
    "ViT": Form(length=16, inputs=4, outputs=4, patches=True),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_dimension_is_the_nullity_of_the_jacobian(name: str) -> None:
    inputs = drawn(FORMS[name]).batch(300 if FORMS[name].patches else 60, 1)
    nets = (drawn(FORMS[name], seed) for seed in range(100))
    net = next(net for net in nets if _lively(net, inputs))
    found = fxrebasin.analyze(net, net.batch(2, 0), symmetry="all").dimension()
    assert found == dimension_of(FORMS[name])
    assert found == nullity(net, [inputs])


def _mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)
    )


def _convolutions(normed: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((2, 3), (3, 4)):
        layers.append(nn.Conv2d(before, after, 3))
        layers += [nn.BatchNorm2d(after)] if normed else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3))


def _draw(net: nn.Module, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.6 * torch.randn(tensor.shape, generator=gen, dtype=torch.float64)
                tensor.copy_(noise.abs() + 0.5 if name.endswith("var") else noise)


def _lively(net: nn.Module, inputs: Tensor) -> bool:
    """Whether each ReLU is on for some inputs and off for others: else more directions are free."""
    shares: list[Tensor] = []

    def look(module: nn.Module, given: object, result: Tensor) -> None:
        units = result.dim() - 1 if result.dim() == 3 else 1
        on = (result > 0).double().movedim(units, 0).flatten(1).mean(1)
        shares.append(on)

    hooks = [m.register_forward_hook(look) for m in net.modules() if isinstance(m, nn.ReLU)]
    net(inputs)
    for hook in hooks:
        hook.remove()
    return all(bool(((share > 0.2) & (share < 0.8)).all()) for share in shares)


@pytest.mark.parametrize(
    ("net", "shape", "expected"),
    [
        (_mlp(nn.ReLU), (4,), 11),
        (_mlp(nn.Tanh), (4,), 0),
        (_mlp(nn.GELU), (4,), 0),
        (nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 8)), (9,), 36 + 6),
        (_convolutions(normed=False), (2, 6, 6), 7),
        (_convolutions(normed=True), (2, 6, 6), 7 * 3),
    ],
)
def test_the_dimension_of_plain_networks(
    net: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    net = net.double().eval()
    inputs = torch.randn(
        (900, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for seed in range(100):
        _draw(net, seed)
        if _lively(net, inputs):
            break
    found = fxrebasin.analyze(net, torch.randn(2, *shape).double(), symmetry="all").dimension()
    assert found == expected
    assert found == nullity(net, [inputs])


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        (nn.Identity(), GroupKind.GENERAL_LINEAR),
        (nn.ReLU(), GroupKind.POSITIVE),
        (nn.LeakyReLU(0.2), GroupKind.POSITIVE),
        (nn.Tanh(), GroupKind.SIGNED),
        (nn.Hardtanh(-2, 2), GroupKind.SIGNED),
        (nn.Hardtanh(-1, 2), GroupKind.PERMUTATION),
        (nn.GELU(), GroupKind.PERMUTATION),
        (nn.GELU(approximate="tanh"), GroupKind.PERMUTATION),
        (nn.SiLU(), GroupKind.PERMUTATION),
        (nn.Sigmoid(), GroupKind.PERMUTATION),
        (nn.ReLU6(), GroupKind.PERMUTATION),
        (nn.Softmax(-1), GroupKind.PERMUTATION),
        (nn.RMSNorm(6, elementwise_affine=False), GroupKind.ORTHOGONAL),
        (nn.LayerNorm(6, elementwise_affine=False), GroupKind.ORTHOGONAL_FIXING_ONES),
    ],
)
def test_what_an_operator_between_two_linear_layers_allows(
    operator: nn.Module, kind: GroupKind
) -> None:
    net = nn.Sequential(nn.Linear(7, 6), operator, nn.Linear(6, 5))
    [c] = fxrebasin.analyze(net, torch.randn(3, 7), symmetry="all").classes
    assert c.kind is kind


def test_signs_alone() -> None:
    net = nn.Sequential(nn.Linear(7, 6), nn.Identity(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    kinds = [c.kind for c in fxrebasin.analyze(net, symmetry="signed").classes]
    assert kinds == [GroupKind.SIGNED, GroupKind.PERMUTATION]
    assert fxrebasin.analyze(net, symmetry="signed").dimension() == 0


def test_the_default_is_permutations() -> None:
    found = fxrebasin.analyze(nn.Linear(3, 4))
    assert found.groups is None
    assert found.gauges == ()
    assert found.dimension() == 0


def test_no_other_symmetry() -> None:
    with pytest.raises(fxrebasin.errors.InputError, match="none of 'permutation', 'signed', 'all'"):
        fxrebasin.analyze(nn.Linear(3, 4), symmetry="orthogonal")


def test_of_files_only_permutations_are_found() -> None:
    with pytest.raises(fxrebasin.errors.InputError, match="of ONNX files only permutations"):
        fxrebasin.analyze("some.onnx", symmetry="all")


def test_an_explanation_names_the_operator_that_limits_a_class() -> None:
    net = nn.Sequential(nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 5))
    text = fxrebasin.analyze(net, symmetry="all").explain("0.weight", 0)
    assert "Group: permutation." in text
    assert "aten.gelu.default" in text


def test_a_model_that_looks_at_data_keeps_its_permutations() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            return self.two(y) if y.sum() > 0 else self.two(-y)

    found = fxrebasin.analyze(Looking(), torch.ones(1, 3), symmetry="all")
    assert [c.kind for c in found.classes] == [GroupKind.PERMUTATION] * len(found.classes)
    assert any("only permutations were looked for" in note for note in found.notes)


def test_meeting_groups() -> None:
    assert GroupKind.POSITIVE.meet(GroupKind.ORTHOGONAL) is GroupKind.PERMUTATION
    assert GroupKind.MONOMIAL.meet(GroupKind.ORTHOGONAL) is GroupKind.SIGNED
    for one in GroupKind:
        for two in GroupKind:
            assert one.meet(two) is two.meet(one)
            assert one.meet(two) <= one
    assert np.all([kind <= kind for kind in GroupKind])


def test_an_operator_that_makes_several_tensors_keeps_permutations() -> None:
    """logsigmoid keeps something for its backward pass."""
    net = nn.Sequential(nn.Linear(4, 6), nn.LogSigmoid(), nn.Linear(6, 3)).double()
    found = fxrebasin.analyze(net, symmetry="all")
    assert [(c.size, c.kind) for c in found.classes] == [(6, GroupKind.PERMUTATION)]


class Waves(nn.Module):
    """Units of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 6, dtype=torch.cdouble))
        self.b = nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b((torch.complex(x, x.flip(1)) @ self.a).abs())
        return out


@pytest.mark.parametrize("symmetry", ["signed", "all"])
def test_complex_units_are_only_permuted(symmetry: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    for call in (
        lambda: fxrebasin.analyze(Waves(), x, symmetry=symmetry),
        lambda: fxrebasin.transform(Waves(), Waves(), x, symmetry=symmetry),
    ):
        with pytest.raises(InputError, match=r"complex ones \(a\); pass symmetry='permutation'"):
            call()
    net = Waves()
    torch.testing.assert_close(fxrebasin.transform(net, Waves(), x)(x), net(x))
