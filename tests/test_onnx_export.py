"""An ONNX file appears only when onnxruntime has proved it, and it says what a reader expects."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.errors import CheckpointError, EquivalenceError, ExportError, InputError
from fxrebasin.exporters.onnx import export as onnx_module
from fxrebasin.exporters.onnx import write
from fxrebasin.exporters.onnx.export import export_onnx
from fxrebasin.exporters.verify import floors
from fxrebasin.exporters.verify.equivalence import verify
from fxrebasin.exporters.verify.floors import NOISE_MULTIPLE
from fxrebasin.exporters.verify.onnx_session import OnnxModel
from tests.support.small_nets import CASES, Case, Residual, draw, mlp, unsettled


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    torch.manual_seed(0)
    return unsettled(nn.Linear(4, 3))


@pytest.fixture(scope="module")
def linear_file(linear, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "linear.onnx"
    export_onnx(linear, path, draw(2, 4))
    return path


@pytest.fixture
def exported_before(linear_file, monkeypatch) -> None:
    """Stands in for the exporter, which takes a second, where what it makes is not the point."""
    monkeypatch.setattr(
        onnx_module,
        "write_onnx",
        lambda model, path, *_, **__: path.write_bytes(linear_file.read_bytes()),
    )


def corrupt(path: Path, change: float) -> None:
    """Edit one number of the largest initializer."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda one: np.prod(one.dims))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += change
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def names(ports) -> tuple[str, ...]:
    return tuple(port.name for port in ports)


# The fused encoder layer is attention once more, and each export takes a second.
EXPORTED = {name: case for name, case in CASES.items() if name != "encoder"}


@pytest.mark.parametrize("case", EXPORTED.values(), ids=EXPORTED)
def test_exports_are_proved_with_a_dynamic_batch_and_readable(case: Case, tmp_path, capfd):
    model = case.model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    model.train()
    path = tmp_path / "net.onnx"
    report = export_onnx(model, path, case.args, case.kwargs)

    assert report.passed
    assert report.notes == ()
    assert report.path == str(path)
    assert report.backend == "onnxruntime-float32"
    assert report.inputs[0] == "example"
    assert "batch of" in report.inputs[1]
    assert report.max_rel <= report.tolerance <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert capfd.readouterr() == ("", "")

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert names(session.get_inputs()) == case.inputs
    assert names(session.get_outputs()) == case.outputs
    assert session.get_inputs()[0].shape[0] == "batch"
    assert b"site-packages" not in path.read_bytes()
    assert str(Path(__file__).parent).encode() not in path.read_bytes()

    assert model.training
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_initializers_have_the_names_of_the_state(tmp_path):
    model = unsettled(Residual())
    export_onnx(model, tmp_path / "net.onnx", draw(1, 3, 8, 8), optimize=False)
    initializers = {one.name for one in onnx.load(tmp_path / "net.onnx").graph.initializer}
    state = model.state_dict()
    assert {name for name in state if "num_batches" not in name} <= initializers


def test_the_same_model_gives_the_same_bytes(linear, linear_file, tmp_path):
    export_onnx(linear, tmp_path / "again.onnx", draw(2, 4))
    assert (tmp_path / "again.onnx").read_bytes() == linear_file.read_bytes()


def test_graph_modules_of_both_tracers_are_exported(tmp_path):
    model = unsettled(Residual())
    graph = torch.fx.symbolic_trace(model)
    assert export_onnx(graph, tmp_path / "fx.onnx", draw(2, 3, 8, 8)).notes == ()
    assert verify(model, tmp_path / "fx.onnx", draw(4, 3, 8, 8)).passed
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (draw(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    report = export_onnx(exported.module(), tmp_path / "export.onnx", draw(2, 3, 8, 8))
    assert report.notes == ()
    assert verify(model, tmp_path / "export.onnx", draw(4, 3, 8, 8)).passed


def test_a_graph_of_one_batch_size_is_exported_as_such_with_a_note(tmp_path, capfd):
    model = unsettled(mlp())
    graph = torch.export.export(model, (draw(2, 6),)).module()
    report = export_onnx(graph, tmp_path / "net.onnx", draw(2, 6))
    assert report.passed
    assert capfd.readouterr() == ("", "")
    assert len(report.notes) == 1
    assert report.notes[0].startswith("the batch is fixed at 2: ")
    again = verify(model, tmp_path / "net.onnx", draw(2, 6))
    assert again.inputs[:2] == ("example", "redrawn")
    assert again.notes == ("the file takes batches of 2 only, and no other was compared",)
    with pytest.raises(InputError, match=r"expected the shape \[2, 6\]"):
        verify(model, tmp_path / "net.onnx", draw(3, 6))


def test_a_fixed_batch_can_be_asked_for(linear, tmp_path):
    report = export_onnx(linear, tmp_path / "net.onnx", draw(2, 4), dynamic_batch=False)
    assert report.passed
    assert report.notes == ()
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.get_inputs()[0].shape == [2, 4]


def test_one_tensor_passed_twice_stays_two_inputs(tmp_path):
    model = unsettled(nn.Bilinear(3, 3, 2))
    x = draw(2, 3)
    assert export_onnx(model, tmp_path / "net.onnx", (x, x)).passed
    assert verify(model, tmp_path / "net.onnx", (x, draw(2, 3, seed=1))).passed


@pytest.mark.usefixtures("exported_before")
def test_inputs_can_be_inferred(linear, tmp_path):
    assert export_onnx(linear, tmp_path / "net.onnx").passed
    assert verify(linear, tmp_path / "net.onnx").passed


def test_the_operator_set_can_be_chosen(linear, tmp_path):
    export_onnx(linear, tmp_path / "net.onnx", draw(2, 4), opset=21)
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 21
    for opset in (17, 1000, "18"):
        with pytest.raises(InputError, match="opset is"):
            export_onnx(linear, tmp_path / "other.onnx", draw(2, 4), opset=opset)


# --- what is refused before any work -----------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("work was done before the refusal")

    monkeypatch.setattr(onnx_module, "write_onnx", fail)
    monkeypatch.setattr(onnx_module, "normalise_inputs", fail)


@pytest.mark.usefixtures("no_work")
def test_destinations_that_cannot_be_written_are_refused(linear, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists and is kept; pass overwrite=True"):
        export_onnx(linear, path, draw(2, 4))
    assert path.read_bytes() == b"mine"
    with pytest.raises(CheckpointError, match="is a directory"):
        export_onnx(linear, tmp_path, draw(2, 4), overwrite=True)
    with pytest.raises(CheckpointError, match="does not exist; create it first"):
        export_onnx(linear, tmp_path / "no" / "net.onnx", draw(2, 4))


@pytest.mark.usefixtures("no_work")
def test_models_that_cannot_be_exported_are_refused(tmp_path):
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.bias, float("nan"))
    with pytest.raises(InputError, match="bias"):
        export_onnx(broken, tmp_path / "net.onnx", draw(1, 2))
    with pytest.raises(InputError, match="type int"):
        export_onnx(3, tmp_path / "net.onnx", draw(1, 2))


def test_inputs_that_onnx_does_not_know_are_refused(tmp_path):
    class Odd(nn.Linear):
        def forward(self, x, extra=None):
            return super().forward(x)

    with pytest.raises(InputError, match="an input of type object cannot be an input"):
        export_onnx(Odd(2, 2), tmp_path / "net.onnx", draw(1, 2), {"extra": object()})
    with pytest.raises(InputError, match="does not run"):
        export_onnx(Odd(2, 2), tmp_path / "net.onnx", draw(1, 3))
    assert list(tmp_path.iterdir()) == []


# --- failures leave nothing behind -------------------------------------------------------------


class Branching(nn.Linear):
    """Needs a value to go on, which no exported graph has."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Log(nn.Linear):
    def forward(self, x):
        return (super().forward(x) - 100).log()


class Silent(nn.Linear):
    def forward(self, x):
        return None


@pytest.mark.parametrize(
    ("model", "error", "words", "dynamic"),
    [
        (Branching(3, 3), ExportError, "cannot export Branching", True),
        (Log(3, 3), EquivalenceError, "NaN", False),
        (Silent(3, 3), ExportError, "returns no tensor", False),
        (nn.Linear(3, 3).bfloat16(), ExportError, r"use model.float\(\)", False),
    ],
)
def test_a_failure_leaves_no_file_and_keeps_an_old_one(
    model, error, words, dynamic, tmp_path, capfd
):
    x = draw(2, 3).to(model.weight.dtype)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(error, match=words):
        export_onnx(model, path, x, overwrite=True, dynamic_batch=dynamic)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"mine"
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("exported_before")
def test_a_wrong_file_is_found_before_it_appears(linear, tmp_path, monkeypatch):
    write = onnx_module.write_onnx

    def write_wrongly(model, path, *args, **kwargs):
        write(model, path, *args, **kwargs)
        corrupt(path, 1e-3)

    monkeypatch.setattr(onnx_module, "write_onnx", write_wrongly)
    with pytest.raises(EquivalenceError, match="exceeds the tolerance"):
        export_onnx(linear, tmp_path / "net.onnx", draw(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_file_is_an_export_error(linear, tmp_path, monkeypatch):
    monkeypatch.setattr(
        onnx_module, "write_onnx", lambda model, path, *_, **__: path.write_bytes(b"junk")
    )
    with pytest.raises(ExportError, match="onnxruntime refuses what was exported"):
        export_onnx(linear, tmp_path / "net.onnx", draw(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported(linear, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_module, "write_onnx", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left"):
        export_onnx(linear, tmp_path / "net.onnx", draw(2, 4))


@pytest.mark.usefixtures("exported_before")
def test_an_old_file_is_replaced_when_asked(linear, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    assert export_onnx(linear, path, draw(2, 4), overwrite=True).passed
    assert verify(linear, path, draw(2, 4)).passed


def test_large_weights_go_to_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "EMBEDDED_BYTES", 1000)
    model = unsettled(nn.Sequential(nn.Linear(30, 100), nn.Linear(100, 3)))
    path = tmp_path / "net.onnx"
    assert export_onnx(model, path, draw(2, 30)).passed
    _, data = sorted(tmp_path.iterdir())
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert data.name == f"net.onnx.{digest[:16]}.data"
    assert data.stat().st_size >= 100 * 30 * 4
    assert verify(model, path, draw(2, 30)).passed


# --- verify ------------------------------------------------------------------------------------


def test_a_corrupted_weight_is_found(linear, linear_file, tmp_path):
    assert verify(linear, str(linear_file), draw(2, 4)).passed
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(linear_file.read_bytes())
    corrupt(path, 1e-4)
    report = verify(linear, path, draw(2, 4))
    assert not report.passed
    assert report.path == str(path)
    assert report.smallest_tolerance > report.tolerance
    assert not verify(unsettled(nn.Linear(4, 3), 1), linear_file, draw(2, 4)).passed


def test_the_tolerance_is_a_multiple_of_the_noise_floor(linear, linear_file):
    (output,) = verify(linear, linear_file, draw(2, 4)).outputs
    assert output.noise_floor >= 4 * torch.finfo(torch.float32).eps
    assert output.tolerance == NOISE_MULTIPLE * output.noise_floor


class _Cancel(nn.Module):
    def forward(self, x):
        return (x + 1e4) - 1e4


class _Apart(nn.Module):
    """What is left of two sums that nearly cancel, which depends on the order of their terms."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(512, 64)
        self.other = copy.deepcopy(self.one)
        with torch.no_grad():
            self.other.weight += 1e-5 * torch.randn(64, 512)

    def forward(self, x):
        return self.one(x) - self.other(x)


def test_a_noisy_model_is_held_to_its_own_noise_and_no_further(linear, tmp_path):
    noisy = nn.Sequential(copy.deepcopy(linear), _Cancel())  # float32 itself is no better here
    assert export_onnx(noisy, tmp_path / "net.onnx", draw(2, 4)).passed
    report = verify(noisy, tmp_path / "net.onnx", draw(2, 4))
    assert report.passed
    assert 1e-4 < report.noise_floor < 1e-2
    corrupt(tmp_path / "net.onnx", 0.5)
    assert not verify(noisy, tmp_path / "net.onnx", draw(2, 4)).passed


def test_a_file_that_rounds_as_well_as_any_needs_no_run_in_float64(linear, tmp_path, monkeypatch):
    runs = []
    run = floors.in_float64
    monkeypatch.setattr(floors, "in_float64", lambda *a, **k: runs.append(1) or run(*a, **k))
    report = export_onnx(linear, tmp_path / "net.onnx", draw(2, 4))
    assert (report.passed, runs) == (True, [])
    assert report.outputs[0].tolerance == NOISE_MULTIPLE * 4 * torch.finfo(torch.float32).eps
    report = export_onnx(_Apart(), tmp_path / "apart.onnx", draw(2, 512))
    assert report.passed
    assert runs
    assert report.noise_floor > 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("keep", [0, 5, 150])
def test_files_that_hold_no_model_are_refused(keep, linear, linear_file, tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(linear_file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not an ONNX model that can be read"):
        verify(linear, path, draw(2, 4))
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not an ONNX model"):
        verify(linear, path, draw(2, 4))


def without_a_kernel(kind):
    """A well-formed file that onnxruntime has no kernel for."""
    make, types = onnx.helper, onnx.TensorProto
    if kind == "element type":
        node, element = make.make_node("Conv", ["x", "w"], ["y"]), types.BFLOAT16
        shapes = {"x": [1, 1, 4, 4], "w": [1, 1, 2, 2], "y": [1, 1, 3, 3]}
    else:
        node, element = make.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=0), types.FLOAT
        shapes = {"x": [2, 3, 4], "w": [1, 3, 4], "r": [1, 3, 1], "y": [None]}
    *inputs, output = (make.make_tensor_value_info(n, element, s) for n, s in shapes.items())
    graph = make.make_graph([node], "graph", inputs, [output])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("kind", "quoted"), [("element type", "tensor\\(bfloat16\\)"), ("attribute", "hidden_size")]
)
def test_what_onnxruntime_cannot_build_is_its_own_fault_and_quoted(kind, quoted, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(without_a_kernel(kind), path)
    with pytest.raises(ExportError, match=f"onnxruntime cannot prepare(?s:.)*{quoted}"):
        OnnxModel(path)


def test_a_missing_file_is_refused(linear, tmp_path):
    with pytest.raises(CheckpointError, match="there is no ONNX file"):
        verify(linear, tmp_path / "none.onnx", draw(2, 4))


def test_inputs_that_the_file_does_not_take_are_refused(linear, linear_file):
    with pytest.raises(InputError, match=r"float32\[2, 5\], expected the shape \['batch', 4\]"):
        verify(nn.Linear(5, 3), linear_file, draw(2, 5))
    with pytest.raises(InputError, match=r"float64\[2, 4\], expected tensor\(float\)"):
        verify(copy.deepcopy(linear).double(), linear_file, draw(2, 4).double())
    with pytest.raises(InputError, match=r"has the inputs input, but .* input1, input2"):
        verify(nn.Bilinear(4, 4, 3), linear_file, (draw(2, 4), draw(2, 4)))


def test_a_file_with_other_outputs_does_not_pass(linear, linear_file):
    class Two(nn.Linear):
        def forward(self, input):
            y = super().forward(input)
            return y, y.argmax(-1)

    two = Two(4, 3)
    two.load_state_dict(linear.state_dict())
    report = verify(two, linear_file, draw(2, 4))
    assert not report.passed
    assert report.structure == ("outputs output instead of 0, 1",)


def test_double_and_half_models_are_compared_in_their_own_precision(linear, tmp_path):
    double = copy.deepcopy(linear).double()
    x = draw(2, 4)
    report = export_onnx(double, tmp_path / "double.onnx", x.double(), dynamic_batch=False)
    assert report.backend == "onnxruntime-float64"
    assert report.tolerance == pytest.approx(1e-10)
    half = copy.deepcopy(linear).half()
    report = export_onnx(half, tmp_path / "half.onnx", x.half(), dynamic_batch=False)
    assert report.backend == "onnxruntime-float16"


def test_export_is_public():
    assert fxrebasin.export_onnx is export_onnx


def test_the_package_leaves_operators_the_objects_that_the_exporter_knows():
    """`OpOverloadPacket.__getattr__` makes a new overload each time it is called by name, and
    torch.export compares overloads by identity."""
    overloads = [op for op in torch._decomp.decomposition_table if hasattr(op, "overloadpacket")]
    assert len(overloads) > 500
    for known in overloads:
        packet = getattr(getattr(torch.ops, known.namespace), known._opname)
        assert getattr(packet, known._overloadname) is known, f"{known} was made anew"
