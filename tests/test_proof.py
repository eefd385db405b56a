"""What transform proves, and what that takes."""

from __future__ import annotations

import gc
import json
import math

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fxrebasin
from fxrebasin.calls import transforming
from fxrebasin.cli import main
from fxrebasin.errors import EquivalenceError, InputError
from fxrebasin.exporters.verify.bits import compare_bits, same_bits
from fxrebasin.exporters.verify.outputs import compare_tensors
from fxrebasin.exporters.verify.pages import Pages
from fxrebasin.exporters.verify.runs import Float64Run
from fxrebasin.proof import prove_bits, prove_state
from fxrebasin.running import apart
from fxrebasin.running.operators import viewed_by
from fxrebasin.running.watching import OperatorMode
from tests.support.small_nets import draw, unsettled


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))

    def forward(self, x):
        return self.inner(x)


@pytest.fixture
def rows(monkeypatch):
    """Rows of every run in float64."""
    found = []
    call = Float64Run.__call__

    def noted(self, inputs, *watching):
        found.append(inputs.rows)
        return call(self, inputs, *watching)

    monkeypatch.setattr(Float64Run, "__call__", noted)
    return found


def small_net():
    return Net()


def pair():
    return tuple(unsettled(Net(), seed) for seed in (1, 2))


def test_a_large_batch_is_proved_on_a_few_of_its_rows(rows):
    a, b = pair()
    g = fxrebasin.transform(b, ref=a, example_inputs=draw(64, 6))
    report = g.meta["fxrebasin"].equivalence
    assert report.passed
    assert report.inputs == ("first row of example", "redrawn batch of 3")
    assert report.rows == 4
    assert rows == [1, 3] * 2


class Pairs(Net):
    def forward(self, x):
        if len(x) == 1:
            raise ValueError("two rows at least")
        return super().forward(x)


def test_a_model_that_refuses_one_row_is_proved_on_two(rows):
    model = unsettled(Pairs(), 1)
    order = fxrebasin.analyze(model, draw(8, 6)).random(seed=0)
    report = prove_state(model, model.state_dict(), order, ((draw(8, 6),), {}))
    assert report.passed
    assert rows == [1, 2, 3, 2, 3]


class Masked(Net):
    def forward(self, x, shared):
        if len(shared) != 1:
            raise ValueError("one for all rows")
        return super().forward(x + shared)


def test_what_all_rows_share_is_not_taken_for_a_row(rows):
    model = unsettled(Masked(), 1)
    inputs = (draw(8, 6), draw(1, 6))
    order = fxrebasin.analyze(model, inputs).random(seed=0)
    assert prove_state(model, model.state_dict(), order, (inputs, {})).passed
    assert rows == [1, 3] * 2


def test_a_model_of_one_batch_size_is_proved_on_that():
    class Fixed(Net):
        def forward(self, x):
            if x.shape[0] != 8:
                raise ValueError("a batch of 8")
            return super().forward(x)

    a, b = (unsettled(Fixed(), seed) for seed in (1, 2))
    report = fxrebasin.transform(b, ref=a, example_inputs=draw(8, 6)).meta["fxrebasin"].equivalence
    assert report.passed
    assert report.inputs[0] == "example"


def test_exact_runs_nothing(rows):
    a, b = pair()
    g = fxrebasin.transform(b, ref=a, example_inputs=draw(4, 6), verify="exact")
    report = g.meta["fxrebasin"]
    assert report.equivalence.passed
    assert report.equivalence.backend == "bits"
    assert report.equivalence.rows == 0
    assert report.equivalence.outputs[0].elements == sum(
        tensor.numel() for tensor in b.state_dict().values()
    )
    assert report.certificate.units_moved > 0
    assert not rows


@pytest.mark.parametrize("verify", ["exact", True])
def test_a_changed_bit_of_the_result_is_found(verify, monkeypatch):
    a, b = pair()
    rewrite = transforming.rewrite

    def damaged(*args, **kwargs):
        result = rewrite(*args, **kwargs)
        with torch.no_grad():
            weight = result.get_parameter("inner.0.weight")
            weight.view(torch.int32)[0, 0] ^= 1
        return result

    monkeypatch.setattr(transforming, "rewrite", damaged)
    with pytest.raises(EquivalenceError, match=r"1 tensors have other bits.*inner\.0\.weight"):
        fxrebasin.transform(b, ref=a, example_inputs=draw(4, 6), verify=verify)


def test_what_cannot_be_asked_for_is_refused_before_any_work(monkeypatch):
    a, b = pair()
    monkeypatch.setattr(transforming, "Request", None)
    for wrong in ("Exact", "all", 2, None):
        with pytest.raises(InputError, match=r"expected True, False or 'exact'"):
            fxrebasin.transform(b, ref=a, example_inputs=draw(4, 6), verify=wrong)


def test_bits_are_those_of_every_kind_of_tensor():
    nan = torch.tensor([float("nan"), -0.0])
    kinds = [
        nan,
        nan.bfloat16(),
        nan.to(torch.float8_e4m3fn),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.empty(0, 3),
        torch.complex(nan, nan).conj(),
        draw(3, 4).t(),
    ]
    for tensor in kinds:
        assert same_bits(tensor, tensor.clone())
        assert not same_bits(tensor, tensor.reshape(1, -1))
    assert not same_bits(torch.ones(3), torch.ones(3).double())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.ones(2, 3), torch.ones(3, 2))
    report = compare_bits(
        [("a", torch.ones(2), torch.ones(2)), ("b", torch.ones(3), torch.zeros(3))]
    )
    assert report.outputs[0].differing == 3
    assert not report.passed


def test_a_missing_tensor_is_found():
    _, b = pair()
    state = b.state_dict()
    order = fxrebasin.analyze(b, draw(2, 6)).random(seed=1)
    moved = order.permute_state_dict(state)
    assert prove_bits(state, moved, order).passed
    del moved["inner.3.bias"]
    with pytest.raises(EquivalenceError, match=r"other tensors.*inner\.3\.bias"):
        prove_bits(state, moved, order)


def test_no_float64_memory_outlives_a_proof_of_a_graph(monkeypatch):
    a, b = pair()
    storages = []
    stand_in = Pages.stand_in

    def noted(self, source, dtype):
        wide = stand_in(self, source, dtype)
        storages.append(wide.untyped_storage())
        return wide

    monkeypatch.setattr(Pages, "stand_in", noted)
    gc.collect()
    gc.disable()
    try:
        fxrebasin.transform(b, ref=a, example_inputs=draw(4, 6))
        assert len(storages) == 2 * len(list(b.parameters()))
        assert not any(storage.nbytes() for storage in storages)
    finally:
        gc.enable()


# --- large outputs -----------------------------------------------------------------------------


class Largest(OperatorMode):
    """The largest tensor that is computed; views are none."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def called(self, func, args, kwargs):
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and not viewed_by(func):
            self.elements = max(self.elements, result.numel())
        return result


def test_a_large_output_is_seen_block_by_block(monkeypatch):
    monkeypatch.setattr(apart, "_BLOCK", 64)
    left = draw(40, 16, seed=1)
    left[3, 5] = left[20, 1] = -math.inf
    right = left + 1e-3 * draw(40, 16, seed=2)
    with Largest() as largest:
        found = compare_tensors("y", left, right, tolerance=1.0)
    assert largest.elements <= 64
    finite = left.isfinite()
    wide, error = left.double()[finite], (right.double() - left.double())[finite]
    assert found.non_finite == ("0 NaN and 2 infinite among 640 values of both",)
    assert found.max_abs == float(error.abs().max())
    assert found.max_rel == float(error.abs().max() / wide.abs().max())
    assert found.mean_abs == pytest.approx(float(error.abs().sum()) / 640)
    cosine = torch.nn.functional.cosine_similarity(wide, right.double()[finite], dim=0)
    assert found.cosine == pytest.approx(float(cosine), abs=1e-12)
    ranked = [x.double().where(finite, 0).argmax(-1) for x in (left, right)]
    assert found.top1 == pytest.approx(float((ranked[0] == ranked[1]).double().mean()))
    assert apart.relative_error(left, right) == found.max_rel
    with Largest() as largest:
        apart.relative_error(left, right)
    assert largest.elements <= 64


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_magnitudes_that_grow_from_block_to_block_do_not_overflow(scale, monkeypatch):
    monkeypatch.setattr(apart, "_BLOCK", 4)
    left = (torch.arange(1, 13).double() * scale).reshape(6, 2)
    right = left.flip(1)
    found = compare_tensors("y", left, right, tolerance=1.0)
    plain = left / scale
    expected = float((plain * plain.flip(1)).sum() / (plain * plain).sum())
    assert found.cosine == pytest.approx(expected)
    assert found.max_rel == pytest.approx(1 / 12)
    assert found.top1 == 0.0


def test_the_command_proves_bits_and_runs_nothing(tmp_path, rows):
    checkpoints = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for seed, path in enumerate(checkpoints):
        torch.save(unsettled(small_net(), seed).state_dict(), path)
    common = ["tests.test_proof:small_net", "--model-b", str(checkpoints[1]), "--exact"]
    common += ["--ref", str(checkpoints[0]), "--input-shape", "2,6"]
    out = tmp_path / "out.safetensors"
    found = CliRunner().invoke(main, ["transform", *common, "--out", str(out), "--json"])
    assert found.exit_code == 0, found.output
    equivalence = json.loads(found.stdout)["equivalence"]
    assert (equivalence["passed"], equivalence["backend"], equivalence["rows"]) == (True, "bits", 0)
    assert not rows
    assert out.exists()
    other = ["transform", *common, "--out", str(tmp_path / "x.pt"), "--symmetry", "signed"]
    refused = CliRunner().invoke(main, other)
    assert refused.exit_code == 2
    assert "only permutations keep all" in refused.output
    assert not (tmp_path / "x.pt").exists()
