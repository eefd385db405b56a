"""A model belongs to its owner: other threads use it, and find it as it was, while a call runs."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import nn
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.exporters.verify.float64 import float64_copy
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.running.collector import collector_paused
from fxrebasin.running.modes import modes_off
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.switches import TRACING, no_warnings
from fxrebasin.symmetry import Symmetry
from tests.support.small_nets import draw, unsettled

X = draw(3, 4)


class Small(nn.Module):
    """A hidden layer with a norm, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu())


def small(seed: int) -> nn.Module:
    return unsettled(Small(), seed).train()


def together(*works: Callable[[], Any]) -> list[BaseException]:
    """Run functions at once; returns what they raised."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - a thread must not lose it
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def process_settings() -> tuple[Any, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(),
        gc.isenabled(),
        sys.stdout,
        sys.stderr,
        list(warnings.filters),
        nn.Module.__call__,
        nn.Module.__getattr__,
        torch.distributions.Distribution._validate_args,
    )


@pytest.fixture(autouse=True)
def often() -> Any:
    """Threads change as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def transforming(model: nn.Module, reference: nn.Module, rounds: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(rounds):
            graph = fxrebasin.transform(model, ref=reference, example_inputs=X)
            assert graph.meta["fxrebasin"].equivalence.passed

    return work


def mean_square(outputs: torch.Tensor, targets: Any) -> torch.Tensor:
    return outputs.square().mean()


BATCHES = [(X, X), (X + 1, X)]
TRAINED: dict[str, Any] = {"loader": BATCHES, "loss": mean_square, "example_inputs": X}


Call: TypeAlias = Callable[[nn.Module, nn.Module, Path], Any]

CALLS: dict[str, Call] = {
    "analyze": lambda m, r, f: fxrebasin.analyze(m, X),
    "match": lambda m, r, f: fxrebasin.match(m, r, X),
    "match, activation": lambda m, r, f: fxrebasin.match(
        m, r, X, method="activation", loader=BATCHES
    ),
    "match, learned": lambda m, r, f: fxrebasin.match(m, r, method="learned", steps=2, **TRAINED),
    "match, straight_through": lambda m, r, f: fxrebasin.match(
        m, r, method="straight_through", epochs=1, **TRAINED
    ),
    "apply": lambda m, r, f: fxrebasin.apply(m, fxrebasin.analyze(m, X).random(seed=1), X),
    "transform": lambda m, r, f: fxrebasin.transform(m, r, X),
    "transform, all": lambda m, r, f: fxrebasin.transform(m, r, X, symmetry="all"),
    "verify": lambda m, r, f: fxrebasin.verify(m, m, X),
    "align_many": lambda m, r, f: fxrebasin.align_many([r, m], example_inputs=X),
    "merge_many": lambda m, r, f: fxrebasin.merge_many([r, m], "merge_many", example_inputs=X),
    "merge_many, all": lambda m, r, f: fxrebasin.merge_many(
        [r, m], "merge_many", example_inputs=X, symmetry="all"
    ),
    "merge_stats": lambda m, r, f: fxrebasin.merge_stats(
        r, m, fxrebasin.transform(m, r, X), example_inputs=X
    ),
    "interpolate": lambda m, r, f: [*fxrebasin.interpolate(r, m, steps=3)],
    "interpolate, bezier": lambda m, r, f: [
        *fxrebasin.interpolate(
            r, m, steps=3, path="bezier", epochs=1, loader=BATCHES, loss=mean_square
        )
    ],
    "barrier": lambda m, r, f: fxrebasin.barrier(r, m, lambda model: len([*model.modules()])),
    "recalibrate": lambda m, r, f: fxrebasin.recalibrate(m, BATCHES),
    "repair": lambda m, r, f: fxrebasin.repair(m, m, r, BATCHES),
    "export_onnx": lambda m, r, f: fxrebasin.export_onnx(m, f / "m.onnx", X, overwrite=True),
}
"""Each public call that takes a model."""


def plain(found: Any, folder: Path) -> Any:
    """What a call found, to compare bit for bit; nothing of it may be of a mode of the caller."""
    if isinstance(found, nn.Module):
        state = found.state_dict()
        assert not any(t.is_inference() or t.is_meta for t in state.values())
        return {name: (tensor.dtype, tensor.tolist()) for name, tensor in state.items()}
    if isinstance(found, list):
        return [plain(item, folder) for item in found]
    if isinstance(found, Symmetry):
        return found.identity()
    if isinstance(found, EquivalenceReport):
        return found.passed
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files or found


def reading(model: nn.Module, stop: threading.Event, calls: list[int]) -> Callable[[], None]:
    """A thread that uses a model, and checks all that it sees."""
    with torch.no_grad():
        want = model(X)
    names = list(model.state_dict())

    def work() -> None:
        while not stop.is_set():
            calls.append(1)
            with torch.no_grad():
                assert torch.allclose(model(X), want, atol=1e-6)
            assert list(model.state_dict()) == names
            assert not any(p.is_meta for p in model.parameters())
            assert all(module.training for module in model.modules())

    return work


@pytest.mark.parametrize(
    "rounds", [10, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(2400)])]
)
@pytest.mark.parametrize("same", [True, False], ids=["one model", "two models"])
def test_two_calls_at_once_and_a_reader_beside_them(same: bool, rounds: int) -> None:
    model, reference = small(1), small(2)
    other = model if same else small(3)
    before = [copy.deepcopy(m.state_dict()) for m in (model, other, reference)]
    transforming(model, reference, 1)()  # what is imported by a call adds to the settings
    settings = process_settings()
    stop, calls = threading.Event(), [0]
    finished: list[int] = []

    def last_stops(work: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            try:
                work()
            finally:
                finished.append(1)
                if len(finished) == 2:
                    stop.set()

        return both

    raised = together(
        last_stops(transforming(model, reference, rounds)),
        last_stops(transforming(other, reference, rounds)),
        reading(model, stop, calls),
    )
    assert raised == []
    assert len(calls) > rounds
    for found, state in zip((model, other, reference), before, strict=True):
        assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in state.items())
        assert all(module.training for module in found.modules())
    assert process_settings() == settings


RUNNING = (
    *("match, activation", "match, learned", "match, straight_through", "align_many"),
    *("merge_many", "interpolate, bezier", "barrier", "merge_stats", "recalibrate", "repair"),
)
"""Calls that run the models they are given, or copies of them."""


@pytest.mark.parametrize(
    "rounds", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(2400)])]
)
def test_merging_leaves_models_to_their_readers(rounds: int, tmp_path: Path) -> None:
    nets = small(1), small(2)
    before = plain([*nets], tmp_path)
    wanted = {call: plain(CALLS[call](*nets, tmp_path), tmp_path) for call in RUNNING}
    settings, random = process_settings(), torch.get_rng_state()
    stop, calls = threading.Event(), [0]

    def working(order: Sequence[str]) -> Callable[[], None]:
        def work() -> None:
            for call in (*order,) * rounds:
                assert plain(CALLS[call](*nets, tmp_path), tmp_path) == wanted[call], call

        return work

    with ThreadPoolExecutor(2) as readers:
        watching = [readers.submit(reading(net, stop, calls)) for net in nets]
        try:
            raised = together(working(RUNNING), working(RUNNING[::-1]))
        finally:
            stop.set()
        for reader in watching:
            reader.result()
    assert raised == []
    assert plain([*nets], tmp_path) == before
    assert process_settings() == settings
    assert torch.equal(torch.get_rng_state(), random)


def test_exports_and_comparisons_at_once_leave_the_outputs_and_settings(tmp_path: Path) -> None:
    model = small(1)
    fxrebasin.export_onnx(model, tmp_path / "first.onnx", X)
    settings = process_settings()
    raised = together(
        lambda: fxrebasin.export_onnx(model, tmp_path / "a.onnx", X),
        lambda: fxrebasin.export_onnx(model, tmp_path / "b.onnx", X),
        lambda: [fxrebasin.verify(model, model, X).raise_if_failed() for _ in range(3)],
        lambda: [fxrebasin.analyze(model, X) for _ in range(5)],
    )
    assert raised == []
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert process_settings() == settings


def test_a_thread_leaves_its_own_modes_and_not_those_of_a_tracer() -> None:
    def modes() -> int:
        with modes_off():
            return _len_torch_dispatch_stack_pre_dispatch()

    found: list[int] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(1) as other:
            found.append(other.submit(modes).result())
        with TRACING:
            found.append(modes())
        return x + 1

    make_fx(model, pre_dispatch=True)(X)
    assert found == [1, 0]


def test_settings_that_overlap_are_put_back_by_the_last() -> None:
    settings = process_settings()
    first, second = collector_paused(), collector_paused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    quiet = no_warnings(), no_warnings()
    quiet[0].__enter__()
    quiet[1].__enter__()
    quiet[0].__exit__(None, None, None)
    warnings.warn("not shown", stacklevel=1)
    quiet[1].__exit__(None, None, None)
    assert process_settings() == settings


class Locked(Small):
    """Cannot be copied as a whole, and knows its parts in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.steps = [self.first, self.norm]
        self.named = {"head": self.last, "pair": (self.last, 3)}
        self.bound = self.last.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            for step in self.steps:
                x = step(x)
            return self.bound(x.relu())


def test_a_model_that_cannot_be_copied_keeps_what_it_holds() -> None:
    model = unsettled(Locked()).train()
    own = own_structure(model)
    assert own is not model
    assert own.lock is model.lock
    assert own.steps[0] is own.first
    assert own.named["pair"][0] is own.last
    assert own.bound.__self__ is own.last
    assert own.last.weight is model.last.weight
    own.eval()
    assert model.training
    wide = float64_copy(model)
    assert wide.last.weight.dtype == torch.float64
    assert model.last.weight.dtype == torch.float32
    assert wide.bound.__self__ is wide.last
    assert fxrebasin.verify(model, copy_of(model), X).passed
    assert model.training


def copy_of(model: nn.Module) -> nn.Module:
    other = Locked()
    other.load_state_dict(model.state_dict())
    return other


# --- the modes that a caller may be in ---------------------------------------------------------


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta by default": lambda: torch.device("meta"),
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "double by default": lambda: default_dtype(torch.float64),
    "half by default": lambda: default_dtype(torch.bfloat16),
    "operators watched": lambda: FlopCounterMode(display=False),
    "fake tensors": FakeTensorMode,
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("call", CALLS)
def test_calls_are_the_same_in_any_mode(call: str, tmp_path: Path) -> None:
    nets = small(1), small(2)
    states = plain([*nets], tmp_path)
    wanted = plain(CALLS[call](*nets, tmp_path), tmp_path)
    for name, surroundings in SURROUNDINGS.items():
        with surroundings():
            found = CALLS[call](*nets, tmp_path)
        assert plain(found, tmp_path) == wanted, name
    assert plain([*nets], tmp_path) == states
    assert all(module.training for net in nets for module in net.modules())


@pytest.mark.parametrize("call", CALLS)
def test_transforms_of_functions_are_refused(call: str, tmp_path: Path) -> None:
    model, reference = small(1), small(2)

    def called(x: torch.Tensor) -> torch.Tensor:
        CALLS[call](model, reference, tmp_path)
        return x

    with pytest.raises(InputError, match=r"inside torch\.vmap, torch\.func\.grad or another trans"):
        torch.vmap(called)(X)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, "x", 1.0, None, True])
def test_a_seed_is_a_whole_number_from_zero(seed: Any) -> None:
    for call in (fxrebasin.match, fxrebasin.transform):
        with pytest.raises(
            InputError, match=r"seed is .*; it has to be a whole number of at least"
        ):
            call(small(1), ref=small(2), example_inputs=X, seed=seed)


@pytest.mark.parametrize("method", [["weight"], None, 3])
def test_a_method_is_a_name(method: Any) -> None:
    with pytest.raises(InputError, match="there are: activation, "):
        fxrebasin.match(small(1), ref=small(2), example_inputs=X, method=method)


def test_functions_that_a_model_holds_speak_of_the_copy() -> None:
    """A `forward` and hooks that are closed over the model, its methods, or other functions."""
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    old, first = model.forward, model[0]

    def shifted(x: torch.Tensor) -> torch.Tensor:
        return old(x) + first.bias.sum()

    model.forward = lambda x: shifted(x) * model[2].bias.sum()  # type: ignore[method-assign]
    model[1].register_forward_hook(lambda _, given, made: made + first.weight.sum())
    own = own_structure(model)
    assert own[0] is not model[0]
    x = torch.randn(4, 3)
    torch.testing.assert_close(own(x), model(x))
    with torch.no_grad():
        own[0].bias = nn.Parameter(torch.zeros(6))
        own[2].bias = nn.Parameter(torch.zeros(2))
    assert (own(x) == 0).all()
    assert (model(x) != 0).any()
    assert fxrebasin.transform(model, model, x).meta["fxrebasin"].equivalence.passed
    assert fxrebasin.analyze(model, x).log10_order() > 2


SEEN: list[torch.Tensor] = []
"""States of the generator that all threads share, as a model saw them."""


class Drawing(Small):
    """Draws numbers, in eval mode too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.append(torch.get_rng_state())
        noise = torch.randn(x.shape) + torch.rand_like(x) + torch.randperm(x.shape[1])
        return super().forward(nn.functional.dropout(x, 0.5, training=True) + 1e-3 * noise)


DRAWING_CALLS = ("match, activation", "match, learned", "recalibrate", "repair", "verify")


@pytest.mark.parametrize("call", DRAWING_CALLS)
def test_other_threads_draw_what_they_would_have_drawn(call: str, tmp_path: Path) -> None:
    model, reference = unsettled(Drawing(), 1), small(2)
    normed = nn.Sequential(model, nn.BatchNorm1d(3))
    loader = DataLoader(TensorDataset(X, X), batch_size=1, shuffle=True)
    SEEN.clear()
    state = torch.get_rng_state()
    works: dict[str, Callable[[], Any]] = {
        "match, activation": lambda: fxrebasin.match(
            model, reference, X, method="activation", loader=loader, verify=False
        ),
        "match, learned": lambda: fxrebasin.match(
            model,
            reference,
            X,
            method="learned",
            steps=2,
            loader=loader,
            loss=mean_square,
            verify=False,
        ),
        "recalibrate": lambda: fxrebasin.recalibrate(normed, loader),
        "repair": lambda: fxrebasin.repair(model, model, reference, loader),
        "verify": lambda: fxrebasin.verify(model, model, X),
    }
    found = [works[call](), works[call]()]
    assert len(SEEN) > 2
    assert all(torch.equal(seen, state) for seen in SEEN)
    assert torch.equal(torch.get_rng_state(), state)
    if isinstance(found[0], nn.Module):
        found = [plain(one, tmp_path) for one in found]
    assert call == "verify" or found[0] == found[1]
