"""The rewritten model owns permuted copies of all state, and computes the same."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.layout import AxisGroup, PermutationClass, Piece, Slot
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.passes.rewrite import rewrite
from fxrebasin.permutation import Permutation
from fxrebasin.running.preserve import preserve

HIDDEN, WIDTH = 6, 4


def axis(number: int) -> tuple[AxisGroup, ...]:
    positions = np.arange(HIDDEN, dtype=np.int64)
    return (AxisGroup((number,), (Piece((Slot("hidden", HIDDEN),), positions),)),)


class Tied(nn.Module):
    """A hidden layer used twice, with statistics, and with what state dicts are bad at."""

    def __init__(self, branch: bool = False) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(float(WIDTH)), persistent=False)
        self.enter, self.enter_again = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.enter_again.weight = self.enter.weight
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.unused = nn.Linear(2, 3)
        self.leave = nn.Linear(HIDDEN, WIDTH)
        self.leave.weight = nn.Parameter(torch.randn(HIDDEN, WIDTH).t())
        self.leave.bias.requires_grad_(False)
        self.branch = branch
        for tensor in (self.norm.running_mean, self.norm.running_var, self.norm.weight):
            nn.init.uniform_(tensor, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.branch and x.shape[1] != WIDTH:
            return x
        hidden = self.enter(x + self.table) + self.enter_again(x).relu()
        return self.leave(self.norm(hidden).relu())


LAYOUT = {
    "enter.weight": axis(0),
    "enter.bias": axis(0),
    "enter_again.weight": axis(0),
    "enter_again.bias": axis(0),
    "norm.weight": axis(0),
    "norm.bias": axis(0),
    "norm.running_mean": axis(0),
    "norm.running_var": axis(0),
    "leave.weight": axis(1),
}


def shuffle() -> Permutation:
    return Permutation.random((PermutationClass("hidden", HIDDEN),), LAYOUT, seed=1)


def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with preserve(model):
        return model(x)


def storages(model: nn.Module) -> set[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage()._cdata for tensor in tensors}


BUILDERS = {"fx": Tied, "export": lambda: Tied(branch=True)}


@pytest.fixture(params=BUILDERS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return BUILDERS[request.param]()


def test_the_result_computes_the_same_and_is_permuted(model: nn.Module) -> None:
    x, p = torch.randn(3, WIDTH), shuffle()
    result = rewrite(model.double(), p, (x.double(),))
    assert isinstance(result, fx.GraphModule)
    torch.testing.assert_close(result(x.double()), run(model, x.double()), rtol=1e-12, atol=1e-12)
    order = p.arrays["hidden"].tolist()
    assert order != sorted(order)
    assert torch.equal(result.get_parameter("enter.weight"), model.enter.weight[order])
    assert torch.equal(result.get_parameter("leave.weight"), model.leave.weight[:, order])


def test_its_state_is_like_the_models_and_shares_nothing_with_it(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    result = rewrite(model, shuffle(), (torch.randn(3, WIDTH),))
    assert list(result.state_dict()) == list(before)
    for name, tensor in model.state_dict(keep_vars=True).items():
        other = result.state_dict(keep_vars=True)[name]
        assert (other.shape, other.dtype, other.stride()) == (
            tensor.shape,
            tensor.dtype,
            tensor.stride(),
        )
        assert (other.requires_grad, type(other)) == (tensor.requires_grad, type(tensor))
        assert torch.equal(tensor, before[name])
    assert not storages(model) & storages(result)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in result.modules())


def test_tied_parameters_are_one_parameter_again(model: nn.Module) -> None:
    result = rewrite(model, shuffle(), (torch.randn(3, WIDTH),))
    tied = [result.get_parameter(f"{name}.weight") for name in ("enter", "enter_again")]
    assert tied[0] is tied[1]
    assert len(list(result.parameters())) == len(list(model.parameters()))


def test_its_weights_load_into_the_models_class(model: nn.Module) -> None:
    x = torch.randn(3, WIDTH)
    result = rewrite(model, shuffle(), (x,))
    fresh = BUILDERS["fx"]()
    fresh.load_state_dict(result.state_dict())
    torch.testing.assert_close(run(fresh, x), run(model, x))


def test_the_inverse_gives_the_model_back_bit_for_bit(model: nn.Module) -> None:
    x, p = torch.randn(3, WIDTH), shuffle()
    back = rewrite(rewrite(model, p, (x,)), p.inverse(), (x,))
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert torch.equal(back(x), run(model, x))


def test_the_result_remembers_its_inputs(model: nn.Module) -> None:
    x = torch.randn(3, WIDTH)
    result = rewrite(model, shuffle(), (x,))
    (again,), kwargs = normalise_inputs(result)
    assert torch.equal(again, x)
    assert again is not x
    assert kwargs == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_moves_bit_for_bit(dtype: torch.dtype) -> None:
    model, p = Tied().to(dtype), shuffle()
    result = rewrite(model, p, (torch.randn(3, WIDTH, dtype=dtype),))
    order = p.arrays["hidden"].tolist()
    assert torch.equal(result.state_dict()["enter.weight"], model.enter.weight[order])


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LSTM(WIDTH, 3, 2, bidirectional=True),
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 3)),
    ],
)
def test_layers_that_hold_their_weights_in_other_places(build: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(build())
    x, nothing = torch.randn(3, 5, WIDTH), Permutation.identity((), {})
    result = rewrite(model, nothing, (x,))
    wanted = run(model, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # the result must not look at these
    for left, right in zip(tree_leaves(run(result, x)), tree_leaves(wanted), strict=True):
        assert torch.equal(left, right)


def test_a_permutation_of_another_model_is_refused(model: nn.Module) -> None:
    layout = {**LAYOUT, "absent.weight": axis(0)}
    p = Permutation.random((PermutationClass("hidden", HIDDEN),), layout, seed=1)
    with pytest.raises(ArchitectureMismatchError, match=r"absent\.weight: missing"):
        rewrite(model, p, (torch.randn(3, WIDTH),))


def test_the_result_can_be_stored() -> None:
    x = torch.randn(3, WIDTH)
    result = rewrite(Tied(), shuffle(), (x,))
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), result(x))
