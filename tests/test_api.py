"""The contract: what the public functions take, give back, refuse, and leave alone."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

import fxrebasin
from tests.support.randomise import log10_factorial, randomise

ROOT = Path(__file__).resolve().parents[1]


class Net(nn.Module):
    """Tied layers, a norm with statistics, an unused layer, a constant, a cache, half a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.again = nn.Linear(6, 8)
        self.again.weight = self.up.weight
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 4)
        self.head.bias.requires_grad_(False)
        self.register_buffer("table", torch.arange(4.0))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu().mean((2, 3))
        x = x + self.down(torch.tanh(self.up(x)) + self.again(x).sigmoid())
        return self.head(x) * self.table


IMAGES = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3))
ORDER = log10_factorial(6, 8)


def net(seed: int = 0) -> Net:
    model = Net()
    randomise(model, seed)
    return model.eval()


def run(model: nn.Module, x: Tensor = IMAGES) -> Tensor:
    training = {module: module.training for module in model.modules()}
    with torch.no_grad():
        found = model.eval()(x)
    for module, flag in training.items():
        module.training = flag
    return found


@pytest.fixture(scope="module")
def symmetry() -> fxrebasin.Symmetry:
    return fxrebasin.analyze(net(), IMAGES)


# --- the symmetry ------------------------------------------------------------------------------


def test_signatures() -> None:
    def names(function: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(function).parameters)

    example = ["example_inputs", "example_kwargs"]
    method = ["method", "seed"]
    assert names(fxrebasin.analyze)[:3] == ["model", *example]
    assert names(fxrebasin.match)[:6] == ["model_b", "ref", *example, *method]
    assert names(fxrebasin.apply)[1:4] == ["permutation", *example]
    assert names(fxrebasin.transform)[:7] == ["model_b", "ref", *example, *method, "verify"]
    assert names(fxrebasin.verify)[:4] == ["model", "other", *example]
    assert names(fxrebasin.export_onnx)[1:4] == ["path", *example]
    for function in (fxrebasin.match, fxrebasin.transform):
        assert names(function)[-1] == "options"
        defaults = inspect.signature(function).parameters
        assert (defaults["method"].default, defaults["seed"].default) == ("weight", 0)


def test_classes(symmetry: fxrebasin.Symmetry) -> None:
    assert isinstance(symmetry.classes, tuple)
    assert all(isinstance(c, fxrebasin.PermutationClass) for c in symmetry.classes)
    found = {c.axes[0]: c for c in symmetry.classes}
    stream, hidden = found["stem.weight", 0], found["up.weight", 0]
    assert len(found) == 2
    assert (stream.size, stream.count, stream.within) == (6, 1, ())
    assert {("norm.running_var", 0), ("down.weight", 0), ("head.weight", 1)} < set(stream.axes)
    assert hidden.size == 8
    assert {("up.bias", 0), ("again.bias", 0), ("down.weight", 1)} < set(hidden.axes)
    assert len({c.name for c in symmetry.classes}) == 2


def test_order_and_coverage(symmetry: fxrebasin.Symmetry) -> None:
    assert isinstance(symmetry.log10_order(), float)
    assert symmetry.log10_order() == pytest.approx(ORDER, rel=1e-9)
    parameters = sum(p.numel() for p in net().parameters())
    fixed = 2 * 2 + 2 + 4  # the unused layer and the head's bias
    assert symmetry.coverage() == pytest.approx(1 - fixed / parameters)


def test_pins_say_why(symmetry: fxrebasin.Symmetry) -> None:
    assert isinstance(symmetry.pins, Mapping)
    assert "model input" in symmetry.pins["stem.weight", 1]
    assert "convolution" in symmetry.pins["stem.weight", 2]
    assert "constant" in symmetry.pins["head.bias", 0]
    assert "not read" in symmetry.pins["unused.weight", 0]
    assert symmetry.unknown_operators == ()
    free = {axis for c in symmetry.classes for axis in c.axes}
    assert not free & set(symmetry.pins)


def test_the_graph_of_ties(symmetry: fxrebasin.Symmetry) -> None:
    graph = symmetry.graph
    assert type(graph) is nx.Graph
    assert graph is symmetry.graph
    assert graph.nodes["stem.weight", 0]["kind"] == "parameter"
    assert graph.nodes["norm.running_mean", 0]["kind"] == "buffer"
    assert {kind for _, kind in graph.nodes(data="kind")} == {"parameter", "buffer", "value"}
    for _, _, edge in graph.edges(data=True):
        assert edge["operator"].startswith("aten.")
        assert edge["node"]
        assert isinstance(edge["source"], str)
    component = nx.node_connected_component(graph, ("stem.weight", 0))
    assert ("head.weight", 1) in component
    assert ("up.weight", 0) not in component


def test_explain_a_free_axis(symmetry: fxrebasin.Symmetry) -> None:
    text = symmetry.explain("stem.weight", 0)
    assert "is free" in text
    assert "6 units" in text
    assert "stem.bias[0]" in text
    assert "aten.convolution" in text
    assert "node stem" in text
    assert Path(__file__).name in text
    assert "self.norm(self.stem(x)).relu()" in text
    assert symmetry.explain("stem.weight", -4) == text


def test_explain_a_pinned_axis(symmetry: fxrebasin.Symmetry) -> None:
    text = symmetry.explain("stem.weight", 1)
    assert "is pinned" in text
    assert "model input" in text
    assert "aten.convolution" in text
    assert "stem" in text
    assert Path(__file__).name in text
    assert "self.norm(self.stem(x)).relu()" in text


def test_explain_tied_names_alike(symmetry: fxrebasin.Symmetry) -> None:
    for name in ("up.weight", "again.weight"):
        assert "is free" in symmetry.explain(name, 0)
        assert "8 units" in symmetry.explain(name, 0)


def test_explain_refuses_what_is_not_there(symmetry: fxrebasin.Symmetry) -> None:
    with pytest.raises(fxrebasin.InputError, match=r"stem\.weigth.*stem\.weight"):
        symmetry.explain("stem.weigth", 0)
    with pytest.raises(fxrebasin.InputError, match="no axis 4"):
        symmetry.explain("stem.weight", 4)


def test_the_symmetry_is_a_value(symmetry: fxrebasin.Symmetry) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        symmetry.classes = ()  # type: ignore[misc]
    assert fxrebasin.analyze(net(seed=5), IMAGES).classes == symmetry.classes


def test_elements_of_the_group(symmetry: fxrebasin.Symmetry) -> None:
    one, two = symmetry.random(1), symmetry.random(2)
    assert isinstance(one, fxrebasin.Permutation)
    assert one == symmetry.random(1)
    assert one != two
    assert symmetry.identity().is_identity
    assert not one.is_identity
    state = net().state_dict()
    both = one.compose(two).permute_state_dict(state)
    in_turn = one.permute_state_dict(two.permute_state_dict(state))
    assert all(torch.equal(both[name], in_turn[name]) for name in state)
    assert one.compose(one.inverse()).is_identity


def test_a_permutation_is_stored(symmetry: fxrebasin.Symmetry, tmp_path: Path) -> None:
    path = tmp_path / "certificate.safetensors"
    symmetry.random(1).save(path)
    assert fxrebasin.Permutation.load(path) == symmetry.random(1)


def test_a_model_on_the_meta_device_is_analysed(symmetry: fxrebasin.Symmetry) -> None:
    with torch.device("meta"):
        model = Net()
    found = fxrebasin.analyze(model, IMAGES.to("meta"))
    assert found.classes == symmetry.classes


def test_a_graph_module_is_analysed(symmetry: fxrebasin.Symmetry) -> None:
    found = fxrebasin.analyze(fx.symbolic_trace(net()), IMAGES)
    assert found.log10_order() == pytest.approx(symmetry.log10_order())


def test_inputs_may_be_given_in_several_ways(symmetry: fxrebasin.Symmetry) -> None:
    found = [
        fxrebasin.analyze(net()),
        fxrebasin.analyze(net(), (IMAGES,)),
        fxrebasin.analyze(net(), None, {"x": IMAGES}),
        fxrebasin.analyze(net(), (), {"x": IMAGES}),
    ]
    assert all(item.classes == symmetry.classes for item in found)


# --- matching and rewriting --------------------------------------------------------------------


@pytest.fixture(scope="module")
def permuted(symmetry: fxrebasin.Symmetry) -> Net:
    """The model to be re-based: A with its units in another order, and with some noise."""
    model = net()
    model.load_state_dict(symmetry.random(4).permute_state_dict(model.state_dict()))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return model


def test_match_and_apply(permuted: Net) -> None:
    p = fxrebasin.match(permuted, ref=net(), example_inputs=IMAGES)
    assert isinstance(p, fxrebasin.Permutation)
    g = fxrebasin.apply(permuted, p, IMAGES)
    assert isinstance(g, fx.GraphModule)
    torch.testing.assert_close(run(g), run(permuted), rtol=1e-4, atol=1e-5)
    for name, tensor in net().state_dict().items():
        torch.testing.assert_close(g.state_dict()[name], tensor, rtol=0, atol=0.1)


def test_transform_reports(permuted: Net) -> None:
    g = fxrebasin.transform(permuted, ref=net(), example_inputs=IMAGES)
    report = g.meta["fxrebasin"]
    assert report.method == "weight"
    assert report.objective_after > report.objective_before
    assert report.distance_after < report.distance_before
    assert report.sweeps >= 1
    assert list(report.seconds) == ["trace", "analyze", "match", "rewrite", "verify"]
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert isinstance(report.equivalence, fxrebasin.EquivalenceReport)
    assert report.equivalence.passed
    assert report.certificate == fxrebasin.match(permuted, ref=net(), example_inputs=IMAGES)
    state = report.certificate.permute_state_dict(permuted.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in g.state_dict().items())
    gap = sum(
        float((p - q).detach().double().pow(2).sum())
        for p, q in zip(g.parameters(), net().parameters(), strict=True)
    )
    assert report.distance_after == pytest.approx(math.sqrt(gap), rel=1e-4)


def test_transform_without_verification(permuted: Net) -> None:
    g = fxrebasin.transform(permuted, ref=net(), example_inputs=IMAGES, verify=False)
    assert g.meta["fxrebasin"].equivalence is None


def test_the_result_has_the_state_of_the_model(permuted: Net) -> None:
    g = fxrebasin.transform(permuted, ref=net(), example_inputs=IMAGES)
    own, theirs = permuted.state_dict(keep_vars=True), g.state_dict(keep_vars=True)
    assert list(theirs) == list(own)
    for name, tensor in own.items():
        other = theirs[name]
        assert (other.shape, other.dtype, other.stride()) == (
            tensor.shape,
            tensor.dtype,
            tensor.stride(),
        )
        assert other.requires_grad == tensor.requires_grad
        assert other.data_ptr() != tensor.data_ptr()
    assert theirs["again.weight"] is theirs["up.weight"]
    fresh = Net()
    fresh.load_state_dict(g.state_dict())
    torch.testing.assert_close(run(fresh), run(permuted), rtol=1e-4, atol=1e-5)


def test_the_inverse_restores_the_model(permuted: Net) -> None:
    g = fxrebasin.transform(permuted, ref=net(), example_inputs=IMAGES)
    back = fxrebasin.apply(g, g.meta["fxrebasin"].certificate.inverse(), IMAGES)
    for name, tensor in permuted.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_are_kept(dtype: torch.dtype, symmetry: fxrebasin.Symmetry) -> None:
    a = net().to(dtype)
    p = symmetry.random(6)
    b = copy.deepcopy(a)
    b.load_state_dict(p.permute_state_dict(a.state_dict()))
    g = fxrebasin.transform(b, ref=a, example_inputs=IMAGES.to(dtype))
    for name, tensor in a.state_dict().items():
        assert g.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(g.state_dict()[name], tensor)


class Branching(Net):
    """Python control flow on a tensor's size, which symbolic tracing does not follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1] == 3 else x


def test_a_model_that_cannot_be_traced_is_exported(symmetry: fxrebasin.Symmetry) -> None:
    a = Branching()
    a.load_state_dict(net().state_dict())
    b = copy.deepcopy(a)
    b.load_state_dict(symmetry.random(2).permute_state_dict(a.state_dict()))
    g = fxrebasin.transform(b, ref=a, example_inputs=IMAGES)
    assert g.meta["fxrebasin"].tracer == "export"
    assert list(g.state_dict()) == list(a.state_dict())
    assert all(torch.equal(g.state_dict()[name], t) for name, t in a.state_dict().items())


# --- the reference -----------------------------------------------------------------------------


def references(folder: Path) -> dict[str, Any]:
    """The same reference in every form that is accepted."""
    state = net().state_dict()
    torch.save(state, folder / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "nested.pth")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / "parallel.pt")
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "a.safetensors")
    names = ("plain.pt", "nested.pth", "parallel.pt", "a.safetensors")
    return {
        "module": net(),
        "state dict": state,
        "parallel": nn.DataParallel(net()),
        "text": str(folder / "plain.pt"),
        **{name: folder / name for name in names},
    }


def test_a_reference_may_come_in_many_forms(permuted: Net, tmp_path: Path) -> None:
    wanted = fxrebasin.match(permuted, ref=net(), example_inputs=IMAGES)
    for form, reference in references(tmp_path).items():
        assert fxrebasin.match(permuted, ref=reference, example_inputs=IMAGES) == wanted, form


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_a_compiled_model_is_unwrapped(permuted: Net) -> None:
    wanted = fxrebasin.match(permuted, ref=net(), example_inputs=IMAGES)
    assert fxrebasin.match(torch.compile(permuted), ref=net(), example_inputs=IMAGES) == wanted


# --- what is left alone ------------------------------------------------------------------------


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a call might change."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "identity": {name: (id(t), t.data_ptr(), t._version) for name, t in tensors.items()},
        "gradients": {name: t.grad for name, t in tensors.items() if t.grad is not None},
        "requires": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def assert_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, tensor in before["values"].items():
        assert torch.equal(tensor, after["values"][name]), name
    for name, gradient in before["gradients"].items():
        assert gradient is after["gradients"][name]
    for key in ("identity", "requires", "training", "attributes", "hooks"):
        assert before[key] == after[key], key


class Cached(Net):
    """It keeps a tensor made of parameters, and counts its calls, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.kept, self.log = 0, None, []
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(self.calls)
        self.cache["up"] = self.up.weight * 2
        self.kept = self.head.weight + 0
        torch.rand(1)
        return self.dropout(super().forward(x))


def test_models_are_left_as_they_were(tmp_path: Path) -> None:
    a, b = Cached(), Cached()
    for seed, model in enumerate((a, b)):
        randomise(model, seed)
        model.train()
        model.norm.eval()
        model(IMAGES).sum().backward()
    before = snapshot(a), snapshot(b)
    kept = [(m.calls, m.kept, list(m.log), dict(m.cache)) for m in (a, b)]
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002  (the global generator is what must not be touched)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    images = IMAGES.clone()
    flags = torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()

    fxrebasin.analyze(b, images).graph.number_of_edges()
    p = fxrebasin.match(b, ref=a, example_inputs=images)
    fxrebasin.apply(b, p, images)
    g = fxrebasin.transform(b, ref=a, example_inputs=images)
    fxrebasin.verify(b, g, images)

    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()) == flags
    assert torch.equal(images, IMAGES)
    for model, old, (calls, cached, log, cache) in zip((a, b), before, kept, strict=True):
        assert_untouched(old, snapshot(model))
        assert (model.calls, model.log) == (calls, log)
        assert model.kept is cached
        assert model.cache.keys() == cache.keys()
        assert all(model.cache[key] is value for key, value in cache.items())


def test_models_are_left_as_they_were_when_a_call_fails() -> None:
    a, b = net(), net()
    b.train()
    before = snapshot(a), snapshot(b)
    torch_state = torch.get_rng_state()
    for wrong in (torch.zeros(2, 4, 5, 5), "images"):
        with pytest.raises(fxrebasin.InputError):
            fxrebasin.transform(b, ref=a, example_inputs=wrong)
    assert torch.equal(torch.get_rng_state(), torch_state)
    for model, old in zip((a, b), before, strict=True):
        assert_untouched(old, snapshot(model))


# --- refusals ----------------------------------------------------------------------------------

CALLS = {
    "match": lambda b, a: fxrebasin.match(b, ref=a, example_inputs=IMAGES),
    "transform": lambda b, a: fxrebasin.transform(b, ref=a, example_inputs=IMAGES),
}
EACH_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@EACH_CALL
def test_another_architecture_is_refused(call: Callable[..., Any]) -> None:
    other = net()
    other.up = nn.Linear(6, 9)
    other.extra = nn.Linear(1, 1)
    with pytest.raises(fxrebasin.ArchitectureMismatchError) as caught:
        call(net(), other)
    text = str(caught.value)
    for part in ("up.weight", "[8, 6]", "[9, 6]", "up.bias", "extra.weight", "extra.bias"):
        assert part in text


def test_graphs_that_differ_are_refused() -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.relu())

    with pytest.raises(fxrebasin.ArchitectureMismatchError, match="relu"):
        fxrebasin.transform(fx.symbolic_trace(net()), ref=fx.symbolic_trace(Other()))


@EACH_CALL
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(call: Callable[..., Any], value: float) -> None:
    good, bad = net(), net()
    with torch.no_grad():
        bad.down.weight[2, 3] = value
        bad.norm.running_mean[1] = value
    for pair in ((bad, good), (good, bad), (good, bad.state_dict())):
        with pytest.raises(fxrebasin.InputError, match=r"down\.weight\[2, 3\]") as caught:
            call(*pair)
        assert "norm.running_mean" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantised_models_are_refused() -> None:
    quantised = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    packed = torch.quantize_per_tensor(quantised[0].weight.detach(), 0.1, 0, torch.qint8)
    quantised[0].register_buffer("packed", packed)
    with pytest.raises(fxrebasin.InputError, match=r"0\.packed"):
        fxrebasin.analyze(quantised, torch.zeros(2, 3))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_scripted_models_are_refused() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    scripted = torch.jit.script(plain)
    for call in (
        lambda: fxrebasin.analyze(scripted, torch.zeros(2, 3)),
        lambda: fxrebasin.match(scripted, ref=plain, example_inputs=torch.zeros(2, 3)),
        lambda: fxrebasin.match(plain, ref=scripted, example_inputs=torch.zeros(2, 3)),
    ):
        with pytest.raises(fxrebasin.InputError, match="scripted"):
            call()


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.zeros(2, 4, 5, 5), r"\[2, 4, 5, 5\]"),
        ((IMAGES, IMAGES), "forward"),
        ("images", "str"),
        ({"x": IMAGES}, "example_kwargs"),
    ],
)
def test_wrong_inputs_are_refused(inputs: Any, text: str) -> None:
    for call in (
        lambda: fxrebasin.analyze(net(), inputs),
        lambda: fxrebasin.transform(net(), ref=net(), example_inputs=inputs),
    ):
        with pytest.raises(fxrebasin.InputError, match=text):
            call()


def test_wrong_options_are_refused(symmetry: fxrebasin.Symmetry) -> None:
    a, b = net(0), net(1)
    with pytest.raises(fxrebasin.InputError, match=r"magic.*weight"):
        fxrebasin.match(b, ref=a, example_inputs=IMAGES, method="magic")
    with pytest.raises(fxrebasin.InputError, match="swepes"):
        fxrebasin.match(b, ref=a, example_inputs=IMAGES, swepes=3)
    with pytest.raises(fxrebasin.InputError, match="tabel"):
        fxrebasin.analyze(a, IMAGES, state_buffers=["tabel"])
    other = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(fxrebasin.ArchitectureMismatchError, match=r"stem\.weight"):
        fxrebasin.apply(other, symmetry.random(0), torch.zeros(2, 3))


@pytest.mark.parametrize("reference", [3, None, "absent.pt", Path("absent.safetensors")])
def test_wrong_references_are_refused(reference: Any) -> None:
    with pytest.raises((fxrebasin.InputError, fxrebasin.CheckpointError)):
        fxrebasin.match(net(), ref=reference, example_inputs=IMAGES)


def test_all_refusals_are_one_family() -> None:
    with pytest.raises(fxrebasin.FxRebasinError):
        fxrebasin.analyze("resnet18")  # type: ignore[arg-type]


# --- repeatability -----------------------------------------------------------------------------

SCRIPT = """
import dataclasses, hashlib, torch
torch.set_num_threads(1)
torch.manual_seed(0)  # how large the weights are that `net` draws depends on those it replaces
import fxrebasin
from tests.test_api import IMAGES, net

symmetry = fxrebasin.analyze(net(), IMAGES)
g = fxrebasin.transform(net(1), ref=net(0), example_inputs=IMAGES)
digest = hashlib.sha256()
for c in symmetry.classes:
    digest.update(repr(dataclasses.astuple(c)).encode())
digest.update(repr(sorted(symmetry.pins.items())).encode())
digest.update(repr(list(symmetry.graph.edges(data=True))).encode())
digest.update(symmetry.explain("stem.weight", 0).encode())
for name, array in g.meta["fxrebasin"].certificate.arrays.items():
    digest.update(name.encode() + array.tobytes())
for name, array in symmetry.random(3).arrays.items():
    digest.update(name.encode() + array.tobytes())
for name, tensor in g.state_dict().items():
    digest.update(name.encode() + tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def test_results_do_not_depend_on_the_hash_seed() -> None:
    found = set()
    for seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_the_same_call_gives_the_same_result(permuted: Net) -> None:
    first, second = (fxrebasin.match(permuted, ref=net(), example_inputs=IMAGES) for _ in "ab")
    assert first == second
