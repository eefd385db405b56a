"""Models that ask where their activations are, and what they are: they do what they really do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxrebasin

CPU = torch.device("cpu")
X, OTHER = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (4, 5))


class Weight(nn.Parameter):
    """A class of parameters of its own."""


QUESTIONS: dict[str, Callable[[Tensor, Tensor], bool]] = {
    "type of device": lambda h, w: h.device.type == "cpu",
    "of a weight": lambda h, w: w.device.type == "cpu",
    "name of device": lambda h, w: str(h.device) == "cpu",
    "device": lambda h, w: h.device == CPU,
    "is_cpu": lambda h, w: h.is_cpu,
    "is_meta": lambda h, w: not h.is_meta,
    "is_cuda": lambda h, w: not h.is_cuda,
    "get_device": lambda h, w: h.get_device() == -1,
    "name of type": lambda h, w: h.type() == "torch.FloatTensor",
    "parameter": lambda h, w: isinstance(w, nn.Parameter),
    "weight that is trained": lambda h, w: w.requires_grad,
}


class Asking(nn.Module):
    """Adds up its units in their order, or all of them, as the answer is."""

    def __init__(self, question: Callable[[Tensor, Tensor], bool], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.outer, self.question = nn.Linear(3, 6), nn.Linear(6, 2), question
        self.inner.weight = Weight(self.inner.weight.detach())
        vars(self.inner.weight)["mark"] = "own"

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).tanh()
        ordered = self.question(h, self.inner.weight)
        return self.outer(h.cumsum(1) if ordered else h * h.sum(1, keepdim=True))


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("name", QUESTIONS)
def test_the_way_is_that_of_the_real_device(name: str, answer: bool) -> None:
    def question(h: Tensor, w: Tensor) -> bool:
        return QUESTIONS[name](h, w) is answer

    a, b = Asking(question, 0), Asking(question, 1)
    assert [c.size for c in fxrebasin.analyze(b, X).classes] == ([] if answer else [6])
    graph = fxrebasin.transform(b, a, X, verify="exact")
    own = Asking(question, 2)
    own.load_state_dict(graph.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(own(OTHER), b(OTHER))
        torch.testing.assert_close(graph(X), b(X))


def test_weights_keep_their_class_and_attributes() -> None:
    a, b = (Asking(lambda h, w: hasattr(w, "mark"), seed) for seed in (0, 1))
    assert fxrebasin.analyze(b, X).classes == ()
    torch.testing.assert_close(fxrebasin.transform(b, a, X)(X), b(X))
    model = Asking(lambda h, w: type(w) is Weight, 0)
    assert fxrebasin.analyze(model, X).classes == ()
    with pytest.raises(fxrebasin.TraceError, match="made a wrong graph"):  # tracers have others
        fxrebasin.transform(model, model, X, verify="exact")


def test_no_graph_takes_the_way_of_a_memory_without_numbers() -> None:
    """What torch.export traces with, and what a dry run computes with, has no numbers."""
    model = Asking(lambda h, w: h.untyped_storage().device.type == "cpu", 0)
    assert fxrebasin.analyze(model, X).classes == ()
    with pytest.raises(fxrebasin.TraceError, match="made a wrong graph"):
        fxrebasin.transform(model, Asking(model.question, 1), X, verify="exact")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_on_meta_goes_the_way_of_one_with_numbers(device: str) -> None:
    model = Asking(lambda h, w: not h.is_meta, 0).to("meta")
    assert fxrebasin.analyze(model, X.to(device)).classes == ()


class Following(nn.Module):
    """Takes a buffer to where its activations are, as rotary embeddings do with frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 3.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.scale.to(device=x.device, dtype=torch.float)
        return self.outer(self.inner(scaled).tanh())


@pytest.mark.parametrize("given", ["cpu", "meta"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_buffers_go_to_where_activations_are(device: str, given: str) -> None:
    model = Following().to(device)
    assert [c.size for c in fxrebasin.analyze(model, X.to(given)).classes] == [6]


class Recurrent(nn.Module):
    """A recurrent layer, which begins with zeros that it makes where its input is."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner, self.outer = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrent_layers_begin_where_their_inputs_are(kind: type[nn.RNNBase], device: str) -> None:
    symmetry = fxrebasin.analyze(Recurrent(kind).to(device), torch.randn(2, 5, 3))
    assert [c.size for c in symmetry.classes] == [4]
