"""A graph computes what the model computes, from the very same state, or there is none."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from fxrebasin.errors import InputError, TraceError
from fxrebasin.passes.trace.trace import trace
from fxrebasin.running.preserve import preserve


class Block(nn.Module):
    """Residual, with state that torch.fx forgets: unused, tied, not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(4), persistent=False)
        self.first = nn.Linear(4, 4)
        self.auxiliary = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.tensor(3))
        self.scale = torch.full((4,), 0.5)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        out = self.first(x) * self.mask * self.scale
        if mask is not None:
            out = out * mask
        out += x
        return self.second(F.dropout(out, training=self.training)) + torch.ones(4)


class Branches(nn.Module):
    """Its flow depends on sizes, which torch.export follows and torch.fx does not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x) if x.shape[-1] == 4 else x
        return out + self.table + torch.tensor([1.0, 2.0, 3.0, 4.0])


class Values(nn.Module):
    """Its flow depends on values, which nothing follows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Choice())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Choice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if self.linear(x).sum() > 0 else x


def outputs(model: nn.Module, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
    with preserve(model):
        return tree_leaves(model(*args, **kwargs))


def assert_traced(model: nn.Module, result: fx.GraphModule, *args: Any, **kwargs: Any) -> None:
    """The graph gives the model's outputs, and has its state: the same objects and keys."""
    for left, right in zip(
        outputs(model, *args, **kwargs), outputs(result, *args, **kwargs), strict=True
    ):
        assert torch.equal(left, right)
    assert list(result.state_dict()) == list(model.state_dict())
    own = dict(result.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert own[name] is parameter


class HeldDown(nn.Linear):
    """Gives its weight other data before it is used (the constraint on norms in EEGNet)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.2)
        return super().forward(x)


def test_data_that_are_assigned_are_part_of_the_graph() -> None:
    model, x = nn.Sequential(HeldDown(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    before = model[0].weight.detach().clone()
    result = trace(model, (x,)).graph_module
    assert_traced(model, result, x)
    assert torch.equal(model[0].weight, before)


class Clipped(nn.Linear):
    """Writes to its weight behind the back of torch.fx."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._parameters["weight"].clamp_(-0.1, 0.1)
        return super().forward(x)


def test_what_a_model_writes_into_its_weights_is_not_taken_from_it_by_the_graph() -> None:
    """The graph gets weights of its own to be compared with, as they were before the model ran."""
    model, x = Clipped(4, 6), torch.randn(3, 4)
    result = trace(model, (x,))
    assert result.tried[0].startswith("torch.fx made a wrong graph")
    assert_traced(model, result.graph_module, x)


@pytest.mark.parametrize("build", [Block, Branches])
def test_state_and_function_are_the_models(build: Callable[[], nn.Module]) -> None:
    model, x = build().train(), torch.randn(3, 4)
    state, flags = torch.get_rng_state(), [m.training for m in model.modules()]
    result = trace(model, (x,))
    assert result.tracer == ("fx" if build is Block else "export")
    assert_traced(model, result.graph_module, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags


def test_what_is_not_persistent_stays_so_and_still_follows_the_module() -> None:
    for model in (Block(), Branches()):
        graph = trace(model, (torch.randn(3, 4),)).graph_module
        names = dict(graph.named_buffers())
        assert set(dict(model.named_buffers())) <= set(names)
        assert all(b.dtype != torch.float32 for b in graph.double().buffers())


def test_arguments_that_are_not_given_are_not_placeholders() -> None:
    model, x, mask = Block(), torch.randn(3, 4), torch.rand(4)
    without = trace(model, (x,)).graph_module
    assert [n.target for n in without.graph.nodes if n.op == "placeholder"] == ["x"]
    given = trace(model, (x,), {"mask": mask})
    assert given.tracer == "fx"
    assert_traced(model, given.graph_module, x, mask=mask)
    constant = trace(model, (x, None)).graph_module
    assert_traced(model, constant, x, None)
    assert_traced(model, constant, x)


def test_inputs_in_containers() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, *pairs: Any, **named: Any) -> dict[str, Any]:
            total = sum(self.linear(pair["x"]) for pair in pairs)
            return {"sum": total * named["scale"], "rest": (pairs[0]["flags"][0], [total])}

    model, scale = Fused(), torch.rand(4)
    pairs = [{"x": torch.randn(3, 4), "flags": (torch.ones(1), True)} for _ in range(2)]
    result = trace(model, pairs, {"scale": scale})
    assert result.tracer == "fx"
    assert_traced(model, result.graph_module, *pairs, scale=scale)
    assert list(result.graph_module(*pairs, scale=scale)) == ["sum", "rest"]


@dataclass
class Answer:
    logits: torch.Tensor
    states: tuple[torch.Tensor, ...] = ()


def test_dataclass_outputs() -> None:
    class Answers(nn.Linear):
        def forward(self, x: torch.Tensor) -> Answer:
            return Answer(super().forward(x), (x + 1,))

    model, x = nn.Sequential(Answers(4, 2)), torch.randn(3, 4)
    graph = trace(model, (x,)).graph_module
    with torch.no_grad():
        got, wanted = graph(x), model(x)
    assert isinstance(got, Answer)
    assert torch.equal(got.logits, wanted.logits)
    assert torch.equal(got.states[0], wanted.states[0])


def test_values_computed_from_buffers_are_not_folded_into_the_graph() -> None:
    class Frozen(nn.Module):
        """The frozen batch norm of detection models: plain arithmetic on buffers."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(4))
            self.register_buffer("variance", torch.rand(4) + 1)
            self.weights = [nn.Parameter(torch.rand(4))]
            self.register_parameter("weight", self.weights[0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = self.weights[0] * (self.variance + 1e-5).rsqrt()
            return (x - self.mean) * scale

    model, x = Frozen(), torch.randn(3, 4)
    graph = trace(model, (x,)).graph_module
    with torch.no_grad():
        model.variance.mul_(3)
        model.weight.mul_(2)
    assert_traced(model, graph, x)


def test_a_graph_that_computes_something_else_is_not_taken() -> None:
    class Aliases(nn.Linear):
        """torch.fx turns += into +, and here `view` sees the difference."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            view = out.view(-1)
            out += 1
            return view

    class Sniffs(nn.Linear):
        """torch.fx passes no tensors, and takes the other branch without a word."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if isinstance(x, torch.Tensor) else x

    class Draws(nn.Linear):
        """torch.fx would keep the numbers of the one draw it saw."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.rand(4)

    x = torch.randn(3, 4)
    for build in (Aliases, Sniffs, Draws):
        model = build(4, 4)
        # as a submodule, for torch.fx does not look into the layers of torch.nn themselves
        result = trace(nn.ModuleList([model])[0], (x,))
        assert result.tracer == "export", build
        assert result.tried[0].startswith("torch.fx made a wrong graph")
        torch.manual_seed(3)
        wanted = model(x)
        torch.manual_seed(3)
        assert torch.equal(result.graph_module(x), wanted)


def test_the_batch_axis_of_exported_graphs_is_open() -> None:
    model = Branches()
    result = trace(model, (torch.randn(3, 4),))
    assert result.tried[0].startswith("torch.fx failed: TraceError: symbolically traced variables")
    assert_traced(model, result.graph_module, torch.randn(7, 4))


def test_a_batch_that_the_model_fixes_is_noted() -> None:
    class Fixed(Branches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.reshape(3, 4))

    result = trace(Fixed(), (torch.randn(3, 4),))
    assert result.tracer == "export"


def test_nodes_know_the_line_of_the_model_that_made_them() -> None:
    graph = trace(nn.Sequential(Block()), (torch.randn(3, 4),)).graph_module.graph
    (add,) = [
        n for n in graph.nodes if n.op == "call_function" and n.kwargs == {} and "add" in n.name
    ][:1]
    assert "test_trace.py" in add.stack_trace.splitlines()[-2]
    assert add.stack_trace.splitlines()[-1].strip() == "out += x"


def test_an_untraceable_model_is_refused_with_both_reasons() -> None:
    with pytest.raises(TraceError) as caught:
        trace(Values(), (torch.randn(3, 4),))
    text = str(caught.value)
    assert "no tracer makes a graph of Values(float32[3, 4])" in text
    assert "torch.fx failed in 'inner.0': TraceError: symbolically traced variables" in text
    assert "torch.export failed in 'inner.0': GuardOnDataDependentSymNode" in text
    assert "the model looks at data" in text
    assert "permute_state_dict" not in text


def test_the_refusal_says_what_works_without_a_graph() -> None:
    class Unsupported(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_compiling() or isinstance(x, fx.Proxy):
                raise NotImplementedError("not here")
            return super().forward(x)

    with pytest.raises(TraceError, match=r"permutation.permute_state_dict\(model.state_dict"):
        trace(Unsupported(4, 3), (torch.randn(3, 4),))


@pytest.mark.parametrize("name", ["code", "graph", "meta", "_code"])
@pytest.mark.parametrize("kind", ["parameter", "buffer", "child"])
def test_names_that_graphs_have_themselves_are_refused_with_what_to_do(
    name: str, kind: str
) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
            if kind == "child":
                self.add_module(name, nn.Linear(6, 6))
            elif kind == "buffer":
                self.register_buffer(name, torch.randn(6))
            else:
                self.register_parameter(name, nn.Parameter(torch.randn(6)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x).relu()
            own = getattr(self, name)
            return self.last(own(h) if kind == "child" else h * own)

    with pytest.raises(TraceError) as caught:
        trace(Named(), (torch.randn(3, 4),))
    text = str(caught.value)
    assert f"graphs have something else of this name, change it in the model: {name}\n" in text
    assert "permutation.permute_state_dict(model.state_dict" in text
    assert "report a bug" not in text


def test_names_that_python_cannot_have_are_refused_in_words() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"class": nn.Linear(4, 3), "is": nn.Linear(4, 2)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([head(x) for head in self.heads.values()], 1)

    with pytest.raises(
        TraceError, match=r"keywords for names: heads\.class, heads\.is\n"
    ) as caught:
        trace(Heads(), (torch.randn(3, 4),))
    assert "permutation.permute_state_dict(model.state_dict" in str(caught.value)


def test_inputs_that_the_model_refuses_are_no_fault_of_the_tracers() -> None:
    with pytest.raises(InputError, match="in 'first' RuntimeError: mat1 and mat2"):
        trace(Block(), (torch.randn(3, 5),))


def test_wrappers_are_taken_off_and_scripted_models_refused() -> None:
    model, x = Block(), torch.randn(3, 4)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert list(trace(wrapped, (x,)).graph_module.state_dict()) == list(model.state_dict())
    with pytest.warns(DeprecationWarning, match="script"):
        scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(InputError, match="the model is scripted"):
        trace(scripted, (x,))
    with pytest.raises(InputError, match=r"of type int; expected a torch\.nn\.Module"):
        trace(3, (x,))


def test_graphs_are_taken_as_they_are() -> None:
    graph = fx.symbolic_trace(Block(), concrete_args={"mask": None})
    result = trace(graph, (torch.randn(3, 4), None))
    assert result.tracer == "given"
    assert result.graph_module is graph


def test_models_without_weights_are_traced() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    result = trace(model, (torch.empty(2, 3, 8, 8, device="meta"),))
    assert result.tracer == "fx"


def test_graphs_are_the_same_every_time_and_can_be_stored() -> None:
    model, x = Block(), torch.randn(3, 4)
    graphs = [trace(model, (x,)).graph_module for _ in range(2)]
    assert graphs[0].code == graphs[1].code
    file = io.BytesIO()
    torch.save(graphs[0], file)
    assert b"fxrebasin" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), graphs[0](x))
