"""The comparison finds what differs, lets pass what does not, and disturbs nothing."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import EquivalenceError, InputError
from fxrebasin.exporters.verify.equivalence import compare_float64, verify
from fxrebasin.exporters.verify.float64 import TrueFloat64, float64_copy, widened
from fxrebasin.exporters.verify.input_sets import example_set, other_sets, with_batch
from fxrebasin.exporters.verify.outputs import compare_tensors
from fxrebasin.exporters.verify.runs import Subject, run_native
from fxrebasin.importers.onnx import comparing
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.running.apart import relative_error
from fxrebasin.running.given import remade
from fxrebasin.running.outputs import counted
from tests.support.small_nets import (
    CASES,
    IDS,
    Cache,
    Case,
    ManyOutputs,
    UpcastNorm,
    draw,
    mlp,
    unsettled,
)


def shuffled_mlp(model: nn.Sequential) -> nn.Sequential:
    """The same function: hidden units of linear - norm - activation - linear in another order."""
    order = torch.randperm(model[0].out_features, generator=torch.Generator().manual_seed(5))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (other[0].weight, other[0].bias, *other[1].parameters()):
            tensor.copy_(tensor[order].clone())
        other[3].weight.copy_(other[3].weight[:, order].clone())
    return other


def one_output(model: nn.Module, other: nn.Module, *args: torch.Tensor):
    return compare_float64(model, other, args, {}).outputs[0]


# --- figures of one output ---------------------------------------------------------------------


def test_figures_are_defined_as_documented():
    reference = torch.tensor([[1.0, -4.0, 2.0], [0.0, 3.0, 3.5]])
    candidate = reference + torch.tensor([[0.0, 0.2, 0.0], [0.0, 0.6, 0.0]])
    figures = compare_tensors("y", reference, candidate, tolerance=0.1, noise_floor=0.01)
    assert figures.max_abs == pytest.approx(0.6)
    assert figures.max_rel == pytest.approx(0.15)  # against 4, the largest of the reference
    assert figures.mean_abs == pytest.approx(0.8 / 6)
    cosine = F.cosine_similarity(reference.flatten().double(), candidate.flatten().double(), dim=0)
    assert figures.cosine == pytest.approx(float(cosine))
    assert figures.top1 == 0.5
    assert (figures.noise_floor, figures.tolerance, figures.passed) == (0.01, 0.1, False)
    assert figures.shape == (2, 3)
    assert figures.dtype == "float32"


def test_the_smallest_tolerance_is_the_one_that_just_passes():
    reference, candidate = draw(3, 4), draw(3, 4) + 1e-3
    smallest = compare_tensors("y", reference, candidate, tolerance=0.0).smallest_tolerance
    assert compare_tensors("y", reference, candidate, tolerance=smallest).passed
    assert not compare_tensors("y", reference, candidate, tolerance=smallest * 0.999).passed


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ([1.0, math.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, math.nan]),
        ([1.0, math.nan], [1.0, math.nan]),
        ([math.nan], [math.nan]),
        ([1.0, math.inf], [1.0, -math.inf]),
        ([1.0, math.inf], [1.0, 2.0]),
        ([math.inf], [math.inf]),
    ],
)
def test_non_finite_values_fail_whatever_the_tolerance(reference, candidate):
    figures = compare_tensors(
        "y", torch.tensor(reference), torch.tensor(candidate), tolerance=math.inf
    )
    assert not figures.passed
    assert figures.non_finite
    assert figures.smallest_tolerance == math.inf


def test_infinities_that_both_share_are_masks_and_reported():
    reference = torch.tensor([1.0, -math.inf, 2.0])
    figures = compare_tensors("y", reference, reference.clone(), tolerance=1e-10)
    assert figures.passed
    assert figures.non_finite == ("0 NaN and 1 infinite among 3 values of both",)
    assert relative_error(reference, reference + 0.5) == 0.25


def test_integers_are_compared_exactly():
    large = torch.tensor([2**60, 7])
    same = compare_tensors("ids", large, large.clone(), tolerance=1.0)
    assert (same.passed, same.differing, same.tolerance, same.top1) == (True, 0, 0.0, None)
    off = compare_tensors("ids", large, large + torch.tensor([1, 0]), tolerance=1.0)
    assert (off.passed, off.differing) == (False, 1)
    assert "1 of 2 integer values differ" in off.problems
    assert not compare_tensors("m", large > 9, large > 0, tolerance=1.0).passed


def test_shape_and_kind_have_to_agree_and_precision_does_not():
    x = torch.ones(2, 3)
    assert not compare_tensors("y", x, torch.ones(3, 2), tolerance=1.0).passed
    assert "shape (1, 3) instead of (2, 3)" in compare_tensors("y", x, x[:1], tolerance=1).problems
    assert not compare_tensors("y", x, x.long(), tolerance=1.0).passed
    assert compare_tensors("y", x, x.double(), tolerance=0.0).passed


def test_empty_zero_and_complex_tensors_have_figures():
    assert compare_tensors("y", torch.ones(0, 3), torch.ones(0, 3), tolerance=0.0).elements == 0
    zero = torch.zeros(2, 2)
    assert compare_tensors("y", zero, zero, tolerance=0.0).cosine == 1.0
    assert compare_tensors("y", zero, zero + 1e-30, tolerance=1.0).max_rel == math.inf
    z = torch.complex(draw(3), draw(3, seed=1))
    assert compare_tensors("y", z, z * 1j, tolerance=1e-3).max_rel == pytest.approx(math.sqrt(2))


def test_tensors_are_found_wherever_a_model_puts_them():
    pair = namedtuple("Pair", "left right")
    loop: dict[str, object] = {"t": torch.ones(1)}
    loop["self"] = loop
    value = {"a": pair(torch.ones(1), [None, torch.ones(1)]), "c": Cache(torch.ones(1)), "l": loop}
    assert list(counted(value)) == ["a.left", "a.right.1", "c.states.0", "l.t"]
    assert list(counted(torch.ones(1))) == ["output"]
    assert counted(None) == {}


# --- whole models in float64 -------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_equals_itself_and_not_its_neighbour(case: Case):
    model = case.model()
    report = compare_float64(model, copy.deepcopy(model), case.args, case.kwargs)
    assert report.passed
    assert report.max_rel == 0
    assert tuple(output.name for output in report.outputs) == case.outputs
    assert not compare_float64(model, unsettled(case.make(), 1), case.args, case.kwargs).passed


def test_another_order_of_units_passes_and_a_change_below_float32_does_not():
    model = unsettled(mlp())
    other = shuffled_mlp(model)
    figures = one_output(model, other, draw(3, 6))
    assert figures.passed
    assert 0 < figures.max_rel < 1e-14
    other.double()
    with torch.no_grad():
        other[0].weight[0, 0] += 1e-9
    assert not one_output(model, other, draw(3, 6)).passed


def test_casts_to_float32_inside_the_model_do_not_spoil_the_figure():
    model = unsettled(nn.Sequential(nn.Linear(6, 64), UpcastNorm(64), nn.SiLU(), nn.Linear(64, 4)))
    other = shuffled_mlp(model)
    x = draw(8, 6)
    naive = relative_error(
        copy.deepcopy(model).double()(x.double()), copy.deepcopy(other).double()(x.double())
    )
    assert naive > 1e-9
    assert one_output(model, other, x).max_rel < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_compared_exactly(dtype):
    model = unsettled(mlp()).to(dtype)
    assert one_output(model, shuffled_mlp(model), draw(3, 6).to(dtype)).max_rel < 1e-14


def test_nothing_is_modified():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()
            self.register_buffer("calls", torch.zeros(1))
            self.cache = {}

        def forward(self, x):
            self.calls += 1
            self.cache["x"] = x
            x.add_(1)
            return self.inner(x) + torch.rand(1)

    model = unsettled(Stateful())
    model.train()
    model.inner[1].eval()
    flags = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = draw(2, 6)
    random_state = torch.get_rng_state()
    assert verify(model, model, x).passed
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())
    assert model.cache == {}
    assert torch.equal(x, draw(2, 6))
    assert torch.equal(random_state, torch.get_rng_state())


def test_structure_of_outputs_has_to_agree():
    model = unsettled(ManyOutputs())

    class Less(ManyOutputs):
        def forward(self, *args, **kwargs):
            result = super().forward(*args, **kwargs)
            del result["best"]
            return result

    other = Less()
    other.load_state_dict(model.state_dict())
    case = CASES["many"]
    report = compare_float64(model, other, case.args, case.kwargs)
    assert not report.passed
    assert "best" in report.structure[0]
    assert all(output.passed for output in report.outputs)
    assert report.smallest_tolerance == math.inf


def test_a_model_without_tensors_in_its_output_does_not_pass():
    class Silent(nn.Linear):
        def forward(self, x):
            return None

    report = verify(Silent(2, 2), Silent(2, 2), draw(1, 2))
    assert not report.passed
    assert report.failures == ("the models return no tensor that could be compared",)


def test_nan_outputs_do_not_pass():
    class Log(nn.Linear):
        def forward(self, x):
            return (super().forward(x) - 100).log()

    model = Log(3, 2)
    report = verify(model, model, draw(2, 3))
    assert not report.passed
    assert report.non_finite == ("output: 4 NaN and 0 infinite among 4 values of both",)
    with pytest.raises(EquivalenceError, match="4 NaN"):
        report.raise_if_failed()


def test_an_output_that_ignores_its_inputs_is_noted():
    model = unsettled(mlp())
    nn.init.zeros_(model[3].weight)
    assert "says nothing" in verify(model, model, draw(2, 6)).notes[0]
    assert verify(unsettled(mlp()), unsettled(mlp()), draw(2, 6)).notes == ()


def test_inputs_that_a_model_does_not_take_are_refused():
    model = nn.Linear(4, 3)
    with pytest.raises(InputError, match=r"the other model does not run .* 5x3"):
        verify(model, nn.Linear(5, 3), draw(2, 4))
    with pytest.raises(InputError, match="does not run"):
        verify(model, model, draw(2, 5))
    with pytest.raises(InputError, match="other is of type int"):
        verify(model, 3)
    with pytest.raises(InputError, match="type str"):
        verify("model", model)


def test_a_set_that_the_model_cannot_take_is_left_out_with_a_note():
    class Picky(nn.Linear):
        def forward(self, x):
            if not torch.equal(x, torch.ones_like(x)):
                raise ValueError("only ones")
            return super().forward(x)

    report = verify(Picky(3, 2), Picky(3, 2), torch.ones(2, 3))
    assert report.inputs[:2] == ("example", "redrawn batch of 3")  # more rows of ones
    assert report.notes[0] == "inputs left out (redrawn batch of 3): ValueError: only ones"


def test_one_tensor_passed_twice_does_not_hide_a_swap():
    class Difference(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, x, y):
            return 1 + self.sign * (x - y)

    x = draw(2, 3)
    assert not verify(Difference(1.0), Difference(-1.0), (x, x)).passed


# --- the report --------------------------------------------------------------------------------


def report_of(change: float) -> EquivalenceReport:
    model = unsettled(ManyOutputs())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.linear.bias[0] += change
    case = CASES["many"]
    return compare_float64(model, other, case.args, case.kwargs)


def test_a_report_reads_well_and_travels_as_json():
    report = report_of(0.5)
    assert str(report).startswith(
        "NOT equivalent (pytorch-float64; inputs: example, redrawn batch of 3): add"
    )
    lines = report.table().splitlines()
    assert lines[0].split()[:3] == ["output", "shape", "dtype"]
    assert next(line for line in lines if line.startswith("add")).endswith("FAIL")
    assert next(line for line in lines if line.startswith("nested.0")).endswith("pass")
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["passed"] is False
    assert document["outputs"][0]["name"] == "add"
    assert document["outputs"][0]["smallest_tolerance"] == report.outputs[0].max_rel
    assert document["failures"]
    assert str(report_of(0.0)).startswith("equivalent on 5 rows (pytorch-float64")
    report_of(0.0).raise_if_failed()


def test_a_report_with_figures_that_are_not_finite_is_json_too():
    nan = compare_tensors("y", torch.ones(2), torch.tensor([math.nan, 1]), tolerance=1.0)
    report = EquivalenceReport("pytorch-float64", (nan,), ("example",))
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["max_rel"] is None
    assert math.isnan(report.max_abs)
    assert report.worst is nan


def test_the_worst_output_and_the_worst_inputs_decide():
    fine = compare_tensors("a", torch.ones(2), torch.ones(2), tolerance=1e-3)
    poor = compare_tensors("a", torch.ones(2), torch.ones(2) + 0.1, tolerance=1e-3)
    assert fine.worst_of(poor).max_rel == poor.worst_of(fine).max_rel == poor.max_rel
    nan = compare_tensors("a", torch.ones(1), torch.tensor([math.nan]), tolerance=1e-3)
    assert not fine.worst_of(nan).passed
    report = EquivalenceReport("pytorch-float64", (fine, poor), ("example",))
    assert report.worst is poor
    assert (report.passed, report.max_abs) == (False, poor.max_abs)
    assert report.cosine == min(fine.cosine, poor.cosine)


# --- float64 throughout ------------------------------------------------------------------------


def test_true_float64_reaches_what_double_does_not():
    constant = torch.full((3, 3), 0.5)

    def function(x):
        made = torch.ones(3) * torch.tensor([0.25, 0.5, 1.0]) + torch.arange(3) / 4
        cast = x.half().float().to(torch.bfloat16).type(torch.float32) @ constant
        summed = cast.sum(-1, dtype=torch.float32, keepdim=True)
        return torch.softmax(cast + made + summed, -1, dtype=torch.float32)

    x = torch.tensor([[1 / 3, 2 / 3, 1.0]], dtype=torch.float64)
    with TrueFloat64():
        result = function(x)
    assert result.dtype == torch.float64
    base = x @ constant.double()
    made = torch.tensor([0.25, 0.75, 1.5], dtype=torch.float64)
    assert (
        relative_error(torch.softmax(base + made + base.sum(-1, keepdim=True), -1), result) < 1e-15
    )


def test_true_float64_keeps_integers_complex_numbers_and_bit_casts():
    with TrueFloat64():
        assert torch.arange(3).dtype == torch.int64
        assert torch.ones(2).to(torch.complex64).dtype == torch.complex128
        assert torch.view_as_complex(torch.ones(1, 2)).dtype == torch.complex128
        assert torch.tensor([0x3F800000], dtype=torch.int32).view(torch.float32).item() == 1.0


def test_true_float64_follows_writes_through_views_and_spares_the_original():
    buffer = torch.zeros(4)
    with TrueFloat64():
        buffer[1:].add_(0.1)
        buffer.view(2, 2)[1].mul_(2)
        total = buffer.sum()
    assert float(total) == pytest.approx(0.5, abs=1e-15)
    assert not buffer.any()


def test_autocast_inside_a_model_is_overruled():
    class Mixed(nn.Linear):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    model = unsettled(Mixed(4, 3))
    exact = F.linear(draw(2, 4).double(), model.weight.double(), model.bias.double())
    run = compare_float64(model, model, (draw(2, 4),), {}).outputs[0]
    assert run.dtype == "float64"
    with TrueFloat64(), torch.no_grad():
        assert relative_error(exact, float64_copy(model)(draw(2, 4).double())) < 1e-15


def test_a_copy_keeps_ties_and_recurrent_weights():
    lstm = nn.LSTM(3, 4)
    twin = float64_copy(lstm)
    assert twin._flat_weights[0] is twin.weight_ih_l0
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    twin = float64_copy(tied)
    assert twin[1].weight is twin[0].weight
    assert twin[0].weight.dtype == torch.float64
    assert tied[0].weight.dtype == torch.float32


def test_a_model_that_cannot_be_copied_as_a_whole_is_left_as_it_is():
    model = unsettled(nn.LSTM(3, 4, batch_first=True))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(draw(1, 2, 3))[0]
    model.lock = threading.Lock()
    twin = float64_copy(model)
    assert twin._flat_weights[0] is twin.weight_ih_l0
    assert twin.weight_ih_l0.dtype == torch.float64
    assert twin.lock is model.lock
    assert verify(model, model, draw(1, 2, 3)).passed
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(expected, model(draw(1, 2, 3))[0])


def test_weights_computed_by_hooks_can_be_compared():
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(3, 2))
    assert verify(model, model, draw(2, 3)).passed


# --- inputs ------------------------------------------------------------------------------------


def drawn_sets(args, kwargs):
    return list(other_sets(example_set(args, kwargs), any_batch=False))


def test_redrawn_inputs_are_like_the_example_and_repeatable():
    image, mask = draw(2, 3, 4).clamp(min=0), torch.tensor([[1, 1, 0], [1, 0, 0]])
    kwargs = {"mask": mask, "ids": IDS, "bias": torch.tensor([0.0, -math.inf]), "flag": True}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    redrawn, again = (drawn_sets((image,), kwargs)[-2] for _ in "ab")
    assert torch.equal(before, torch.get_rng_state())
    assert not redrawn.required
    assert torch.equal(redrawn.args[0], again.args[0])
    drawn = redrawn.args[0]
    assert drawn.shape == image.shape
    assert drawn.dtype == image.dtype
    assert drawn.min() >= 0
    assert drawn.max() <= image.max()
    assert not torch.equal(drawn, image)
    assert torch.equal(redrawn.kwargs["mask"], mask)
    assert torch.equal(redrawn.kwargs["bias"], kwargs["bias"])
    assert not torch.equal(redrawn.kwargs["ids"], IDS)
    assert torch.equal(redrawn.kwargs["ids"].flatten().sort().values, IDS.flatten())
    assert redrawn.kwargs["flag"] is True


def test_constant_inputs_get_values_and_masks_alone_nothing():
    assert drawn_sets((torch.zeros(2, 3),), {})[0].args[0].std() > 0.1
    complex_input = torch.complex(draw(4), draw(4, seed=1))
    assert drawn_sets((complex_input,), {})[0].args[0].dtype == torch.complex64
    assert drawn_sets((torch.zeros(2, 3, dtype=torch.long),), {})[1:] == []


def test_another_batch_repeats_rows_of_all_that_have_the_batch():
    fixed = draw(5, 3)
    example = example_set((draw(2, 3), fixed), {"ids": IDS, "scale": 2.0})
    other = with_batch(example, 3, required=True)
    assert other.args[0].shape == (3, 3)
    assert other.args[1].shape == (5, 3)
    assert other.kwargs["ids"].shape == (3, 5)
    assert other.kwargs["scale"] == 2.0
    assert other.required


def test_running_returns_exceptions_instead_of_raising(capfd):
    graph = torch.fx.symbolic_trace(nn.Linear(3, 2))
    sets = [example_set((draw(2, 4),), {})]
    assert all(isinstance(run, RuntimeError) for run in run_native(Subject(graph), sets))
    assert capfd.readouterr() == ("", "")


def test_widened_copies_and_keeps_what_is_no_tensor():
    x = torch.ones(2, dtype=torch.float64)
    wide = remade({"x": x, "n": 3, "h": (torch.ones(1).half(), None)}, widened)
    assert wide["x"] is not x
    assert wide["n"] == 3
    assert wide["h"][0].dtype == torch.float64
    assert wide["h"][1] is None


def test_verify_is_public():
    assert fxrebasin.verify is comparing.verify


class Squeezed(nn.Module):
    """Its output for one row has no axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu()).squeeze()


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_outputs_without_an_axis_for_one_row(rows: int) -> None:
    model, other = Squeezed(), Squeezed()
    inputs = torch.randn(rows, 4)
    assert fxrebasin.verify(model, copy.deepcopy(model), inputs).passed
    assert not fxrebasin.verify(model, other, inputs).passed
    result = fxrebasin.transform(model, other, inputs)
    assert torch.allclose(result(-inputs), model(-inputs), rtol=1e-5, atol=1e-6)
