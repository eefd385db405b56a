"""Models that cannot be analysed or matched are refused with everything that is wrong."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.models.checks import (
    StateMismatchError,
    check_finite,
    check_same_architecture,
    check_usable,
    first_graph_difference,
    unwrap,
)


def net(hidden: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def test_states_of_one_architecture_pass() -> None:
    check_same_architecture(net().state_dict(), net().half().state_dict())


def test_all_differences_are_told() -> None:
    left, right = net(4).state_dict(), net(5).state_dict()
    left["only.left"] = torch.zeros(1)
    right["only.right"] = torch.zeros(2)
    right["2.bias"] = right["2.bias"].long()
    with pytest.raises(StateMismatchError) as caught:
        check_same_architecture(left, right, ("B", "A"))
    assert [d.name for d in caught.value.differences] == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
        "only.left",
        "only.right",
    ]
    text = str(caught.value)
    assert "1 only in B, 1 only in A, 4 of another shape or kind" in text
    assert "0.weight    float32[4, 3]  float32[5, 3]" in text
    assert "2.bias      float32[2]     int64[2]" in text
    assert "only.left   float32[1]     missing" in text


def test_a_long_list_is_cut_in_the_message_only() -> None:
    left = {f"layer{i}.weight": torch.zeros(1) for i in range(100)}
    with pytest.raises(StateMismatchError, match="and 90 more") as caught:
        check_same_architecture(left, {})
    assert len(caught.value.differences) == 100


def test_the_first_graph_node_that_differs_is_told() -> None:
    left, right = net(), net()
    right[1] = nn.GELU()
    graphs = [fx.symbolic_trace(model) for model in (left, right, left)]
    assert first_graph_difference(graphs[0], graphs[2]) is None
    text = first_graph_difference(graphs[0], graphs[1])
    assert text is not None
    assert "node 2 is call_module 1 = ReLU(_0) in the model" in text
    assert "GELU(approximate='none')(_0) in the reference" in text


def test_other_settings_and_other_wiring_are_differences() -> None:
    class Wired(nn.Module):
        def __init__(self, first: bool, stride: int = 1) -> None:
            super().__init__()
            self.conv, self.first = nn.Conv1d(2, 2, 1, stride=stride), first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y - x if self.first else x - y

    graphs = [fx.symbolic_trace(Wired(*settings)) for settings in ((True,), (False,), (True, 2))]
    assert "operator.sub(conv, x)" in (first_graph_difference(graphs[0], graphs[1]) or "")
    assert "stride=(2,)" in (first_graph_difference(graphs[0], graphs[2]) or "")


def test_values_that_are_not_finite_are_all_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].weight[2, 1] = math.nan
        model[0].weight[3, 1] = math.inf
        model[1].running_var[3] = math.inf
    with pytest.raises(InputError) as caught:
        check_usable(model)
    assert "0.weight[2, 1] = nan" in str(caught.value)
    assert "1.running_var[3] = inf" in str(caught.value)
    check_usable(model, needs_weights=False)


def test_masks_may_hold_minus_infinity_and_weights_may_not() -> None:
    mask = torch.full((4, 4), -math.inf).triu(1)
    check_finite({}, {"mask": mask})
    with pytest.raises(InputError, match=r"mask\[0, 1\] = -inf"):
        check_finite({"mask": mask})


def test_bounds_may_be_infinite_and_not_nan() -> None:
    check_finite({}, {"low": torch.tensor(-math.inf), "high": torch.tensor([math.inf])})
    with pytest.raises(InputError, match=r"high\[\] = nan"):
        check_finite({}, {"high": torch.tensor(math.nan)})
    with pytest.raises(InputError, match=r"high\[1\] = inf"):
        check_finite({}, {"high": torch.tensor([0.0, math.inf])})
    with pytest.raises(InputError, match=r"high\[\] = inf"):
        check_finite({"high": torch.tensor(math.inf)})


class Clamped(nn.Module):
    """A layer whose outputs are clamped to bounds that may bound nothing, as after calibration."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("low", torch.tensor(-math.inf))
        self.register_buffer("high", torch.tensor(math.inf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).clamp(self.low, self.high).tanh())


def test_a_model_with_bounds_that_bound_nothing_is_transformed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b, x = Clamped(), Clamped(), torch.randn(4, 3)
    symmetry = fxrebasin.analyze(a, x)
    assert symmetry.log10_order() == pytest.approx(math.log10(math.factorial(6)))
    b.load_state_dict(symmetry.random(1).permute_state_dict(a.state_dict()))
    result = fxrebasin.transform(b, ref=a, example_inputs=x)
    for name, tensor in a.state_dict().items():
        assert torch.equal(result.state_dict()[name], tensor), name
    fxrebasin.export_onnx(b, tmp_path / "b.onnx", x)
    fxrebasin.export_onnx(a, tmp_path / "a.onnx", x)
    fxrebasin.onnx_transform(tmp_path / "b.onnx", ref=tmp_path / "a.onnx", out=tmp_path / "c.onnx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_every_dtype_is_checked(dtype: torch.dtype) -> None:
    tensor = torch.ones(2, 3, dtype=dtype)
    check_finite({"x": tensor, "empty": tensor[:0]})
    tensor[1, 2] = math.nan
    with pytest.raises(InputError, match=r"x\[1, 2\] = nan"):
        check_finite({"x": tensor})


def test_fp8_is_checked() -> None:
    tensor = torch.ones(2).to(torch.float8_e4m3fn)
    check_finite({"x": tensor})
    with pytest.raises(InputError, match=r"x\[1\] = nan"):
        check_finite({"x": torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn)})


def test_weights_that_do_not_exist_yet_are_refused() -> None:
    with pytest.raises(InputError, match=r"not initialised yet: 1\.weight, 1\.bias\. Run"):
        check_usable(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))


def test_models_without_values_can_be_analysed_only() -> None:
    model = nn.Linear(2, 2, device="meta")
    check_usable(model, needs_weights=False)
    with pytest.raises(InputError, match=r"on the meta device\): weight, bias"):
        check_usable(model)


def test_sparse_weights_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.eye(2).to_sparse())
    with pytest.raises(InputError, match="sparse parameters: weight"):
        check_usable(model)


def test_quantised_weights_are_refused() -> None:
    class Packed(nn.Parameter):
        """What libraries keep int8 weights in."""

    model = net()
    model[0].weight = Packed(torch.ones(4, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"quantised parameters: 0\.weight"):
        check_usable(model)
    buffered = net()
    with warnings.catch_warnings():  # torch announces once that this will go
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    buffered.register_buffer("q", tensor)
    with pytest.raises(InputError, match="quantised parameters: q"):
        check_usable(buffered)


def test_quantised_modules_are_refused() -> None:
    kind = type("Linear", (nn.Module,), {"__module__": "torch.ao.nn.quantized.modules.linear"})
    model = nn.Sequential(nn.Linear(2, 2), kind())
    with pytest.raises(InputError, match="quantised modules: 1"):
        check_usable(model)


def test_scripted_parts_are_refused() -> None:
    with pytest.warns(DeprecationWarning, match="script"):
        model = nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="submodules are scripted: 1"):
        unwrap(model)


def test_wrappers_are_taken_off() -> None:
    model = net()
    assert unwrap(model) is model
    assert unwrap(nn.DataParallel(torch.compile(model, backend="eager"))) is model
