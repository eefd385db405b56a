"""Graphs of torch.export that are written as ONNX without being traced again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import fxrebasin
from fxrebasin.errors import ExportError
from fxrebasin.exporters.onnx import export as export_module
from fxrebasin.exporters.onnx.axes import axes_of_graph, batch_axes
from fxrebasin.exporters.onnx.capture import Axes, Captured
from fxrebasin.exporters.onnx.handed import handed_on
from fxrebasin.exporters.verify.input_sets import example_set
from fxrebasin.passes.trace.made_for import made_for
from tests.support.small_nets import draw, unsettled

BATCH: Axes = {"x": {0: "batch"}}


class Unbound(nn.Module):
    """Rows of a fixed number of parts, which torch.fx cannot iterate over."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.LayerNorm(6)
        self.register_buffer("scale", torch.rand(6) + 0.5)
        self.register_buffer("shift", torch.rand(6), persistent=False)

    def forward(self, x: Tensor) -> Any:
        h = sum(self.enter(part).relu() for part in x.unbind(1))
        return self.leave(self.inner(self.norm(h) * self.scale + self.shift).tanh())


class Tied(Unbound):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.again.weight = self.inner.weight

    def forward(self, x: Tensor) -> Any:
        h = sum(self.enter(part).relu() for part in x.unbind(1))
        return self.leave(self.again(self.inner(h).relu()).relu())


class Several(Unbound):
    """With a flag, a second input, an output that is none, and one that comes twice."""

    def forward(self, x: Tensor, *, y: Tensor, flag: bool = True) -> Any:
        out = super().forward(x)
        return {"out": out, "none": None, "both": (out, y.sum(1) + out[:, 0])} if flag else out


class Apart(Unbound):
    """With a second input whose batch nothing relates to that of the first."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return super().forward(x), self.leave(y.unbind(1)[0])


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut, self.place = nn.Conv2d(3, 8, 4, 4), nn.Parameter(draw(4, 8))
        self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cut(x).flatten(2).transpose(1, 2) + self.place
        for part in self.attend(h, h, h)[0].unbind(1):
            h = h + part[:, None]
        return self.head(h.mean(1))


CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "buffers": (Unbound, {"x": draw(4, 3, 4)}),
    "tied": (Tied, {"x": draw(4, 3, 4)}),
    "several": (Several, {"x": draw(4, 3, 4), "y": draw(4, 2), "flag": True}),
    "apart": (Apart, {"x": draw(4, 3, 4), "y": draw(4, 2, 6)}),
    "patches": (Patches, {"x": draw(2, 3, 8, 8)}),
}


def transformed(kind: type[nn.Module], inputs: dict[str, Any]) -> fx.GraphModule:
    a, b = (unsettled(kind(), seed) for seed in (1, 2))
    graph = fxrebasin.transform(b, ref=a, example_kwargs=inputs)
    assert graph.meta["fxrebasin"].tracer == "export"
    return graph


def content(path: Path) -> tuple[Any, ...]:
    graph = onnx.load(path).graph
    return (
        [item.SerializeToString() for item in (*graph.input, *graph.output)],
        [(node.op_type, len(node.input), len(node.output)) for node in graph.node],
        sorted(item.SerializeToString() for item in graph.initializer),
    )


def no_capture(*args: Any, **kwargs: Any) -> Captured:
    raise AssertionError("it is traced again")


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_that_of_a_graph_that_is_traced_again(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, inputs = CASES[case]
    graph = transformed(kind, inputs)
    example, made = example_set((), inputs), made_for(graph)
    assert made is not None
    assert axes_of_graph(made, example, inputs) == batch_axes(example, inputs)
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    code = graph.code
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "capture", no_capture)
        handed = fxrebasin.export_onnx(graph, tmp_path / "a.onnx", example_kwargs=inputs)
    monkeypatch.setattr(export_module, "handed_on", lambda *args: None)
    traced = fxrebasin.export_onnx(graph, tmp_path / "b.onnx", example_kwargs=inputs)
    assert content(tmp_path / "a.onnx") == content(tmp_path / "b.onnx")
    assert (handed.inputs, handed.passed) == (traced.inputs, True)
    assert [note.split(": ")[0] for note in handed.notes] == [
        note.split(": ")[0] for note in traced.notes
    ]
    assert graph.code == code
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state_dict().items())


def test_outputs_that_count_are_those_of_the_file(tmp_path: Path) -> None:
    kind, inputs = CASES["several"]
    graph = transformed(kind, inputs)
    found = handed_on(graph, example_set((), inputs), {**BATCH, "y": {0: "batch"}}, ("both.1",))
    assert found is not None
    assert found.outputs == ("both.1",)
    assert found.inputs == ("x", "y")


def test_guards_and_labels_are_those_of_the_trace() -> None:
    graph = transformed(*CASES["buffers"])
    found = handed_on(graph, example_set((draw(5, 3, 4),), {}), BATCH, None)
    assert found is not None
    assert set(found.labels.values()) == {"batch"}
    assert found.objection({"batch": 7}) is None


def another(graph: fx.GraphModule) -> fx.GraphModule:
    node = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.tanh.default)
    with graph.graph.inserting_after(node):
        made = graph.graph.call_function(torch.ops.aten.neg.default, (node,))
    made.args, made.meta = (node,), {}
    graph.recompile()
    return graph


def writing(graph: fx.GraphModule) -> fx.GraphModule:
    node = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.tanh.default)
    node.target = torch.ops.aten.tanh_.default
    graph.recompile()
    return graph


NOT = {
    "other_dtype": (lambda g: g.double(), (draw(4, 3, 4).double(),), BATCH),
    "other_input": (lambda g: g, (draw(4, 3, 4).double(),), BATCH),
    "other_size": (lambda g: g, (draw(4, 2, 4),), BATCH),
    "fixed": (lambda g: g, (draw(4, 3, 4),), {}),
    "more_open": (lambda g: g, (draw(4, 3, 4),), {"x": {0: "batch", 1: "sequence"}}),
    "another_operator": (another, (draw(4, 3, 4),), BATCH),
    "a_write": (writing, (draw(4, 3, 4),), BATCH),
    "traced_by_fx": (lambda g: fx.symbolic_trace(nn.Linear(4, 2)), (draw(4, 4),), {}),
    "in_a_container": (lambda g: g, ([draw(4, 3, 4)],), BATCH),
    "no_graph": (lambda g: nn.Linear(4, 2), (draw(4, 4),), {}),
}


@pytest.mark.parametrize("case", NOT)
def test_what_a_graph_was_not_made_for_is_traced(case: str) -> None:
    change, args, axes = NOT[case]
    graph = change(transformed(*CASES["buffers"]))
    assert handed_on(graph, example_set(args, {}), axes, None) is None


@pytest.mark.parametrize("fault", ["refused", "raised", "wrong"])
def test_a_program_that_does_not_hold_is_traced_again(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = transformed(*CASES["buffers"])

    def handed(model: nn.Module, *rest: Any) -> Captured | None:
        if fault == "raised":
            raise RuntimeError("torch has changed")
        found = handed_on(model, *rest)
        assert found is not None
        for node in found.program.graph.nodes:
            if fault == "wrong" and node.target is torch.ops.aten.tanh.default:
                node.target = torch.ops.aten.sigmoid.default
            if fault == "refused" and node.target is torch.ops.aten.tanh.default:
                node.target = torch.ops.aten.special_bessel_j0.default
        return found

    monkeypatch.setattr(export_module, "handed_on", handed)
    path = tmp_path / "net.onnx"
    assert fxrebasin.export_onnx(graph, path, example_kwargs=CASES["buffers"][1]).passed
    assert "Tanh" in {node.op_type for node in onnx.load(path).graph.node}
    monkeypatch.setattr(export_module, "capture", no_capture)
    with pytest.raises((AssertionError, ExportError)):
        fxrebasin.export_onnx(graph, path, example_kwargs=CASES["buffers"][1], overwrite=True)


def test_a_graph_of_one_row_is_for_any_number_of_rows(tmp_path: Path) -> None:
    """It is traced with two, since values may be repeated along an axis of size 1."""
    inputs = {"x": draw(1, 3, 4)}
    graph = transformed(Unbound, inputs)
    assert fxrebasin.export_onnx(graph, tmp_path / "a.onnx", example_kwargs=inputs).passed
    (x,) = onnx.load(tmp_path / "a.onnx").graph.input
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["batch", 3, 4]


def test_sizes_that_a_graph_was_not_made_for_are_fixed(tmp_path: Path) -> None:
    """The graph takes four parts where the model sums three, and leaves the fourth out."""
    kind, inputs = CASES["buffers"]
    graph = transformed(kind, inputs)
    more = draw(4, 4, 4)
    model = kind()
    model.load_state_dict(graph.state_dict())
    model.shift.copy_(graph.shift)
    assert torch.allclose(model(inputs["x"]), graph(inputs["x"]), atol=1e-5)
    assert not torch.allclose(model(more), graph(more), atol=1e-2)
    fxrebasin.export_onnx(graph, tmp_path / "a.onnx", example_kwargs=inputs)
    (x,) = onnx.load(tmp_path / "a.onnx").graph.input
    sizes = [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 4]
