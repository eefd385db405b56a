"""Two runs are one program if they compute the same: graphs are compared so before they are run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxrebasin.passes.trace.trace import trace
from fxrebasin.running.dry_run import dry_run


class Noisy(nn.Module):
    """A mask that is broadcast, whole slices, inferred sizes; no graph of torch.fx."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x.shape[0], int | torch.SymInt):
            raise TypeError("not for proxies")
        h = self.first(x)[:, :, slice(0, None)].view(x.shape[0], -1, 6)
        h = h + torch.arange(6.0)
        return self.last(h.to(torch.float32).reshape(x.shape[0], -1, 6).relu())


def test_programs_that_differ_in_what_does_nothing_are_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[object] = []
    name = "fxrebasin.passes.trace.comparing._numeric_difference"
    monkeypatch.setattr(name, lambda *args: compared.append(args))
    result = trace(Noisy(), (torch.randn(2, 5, 4),))
    assert result.tracer == "export"
    assert compared == []


def programs(*models: Callable[[torch.Tensor], torch.Tensor]) -> list[tuple[object, ...]]:
    class Made(nn.Module):
        def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(x)

    found = [dry_run(Made(model), (torch.randn(2, 3, 4),), {}) for model in models]
    return [(one.program, *one.outputs(None).items()) for one in found]


M = torch.arange(4.0)
SAME = {
    "whole slice": (lambda x: x[:, :].exp(), lambda x: x.exp()),
    "inferred size": (lambda x: x.exp().view(2, -1), lambda x: x.exp().view(2, 12)),
    "order": (
        lambda x: (lambda a, b: a - b)(x.exp(), x.sin()),
        lambda x: (lambda b, a: a - b)(x.sin(), x.exp()),
    ),
    "zeros": (lambda x: x.exp() + torch.zeros(2, 1, 4), lambda x: x.exp()),
    "mask": (lambda x: x.exp() + M, lambda x: x.exp() + M.expand(2, 1, 4).clone()),
}
OTHER = {
    "part": (lambda x: x[:, 1:].exp(), lambda x: x[:, :-1].exp()),
    "other size": (lambda x: x.exp().view(2, 12), lambda x: x.exp().view(4, 6)),
    "other mask": (lambda x: x.exp() + M, lambda x: x.exp() + torch.stack([M, M + 1])[:, None]),
    "sign of zero": (lambda x: x * torch.zeros(2, 1, 1), lambda x: x * Z),
    "write to a copy": (
        lambda x: (lambda e: (e.view(2, 12).mul_(2), e + 0)[1])(x.exp()),
        lambda x: (lambda e: (e.clone().view(2, 12).mul_(2), e + 0)[1])(x.exp()),
    ),
    "zeros that are broadcast to": (lambda x: x.exp() + torch.zeros(2, 2, 3, 4), lambda x: x.exp()),
    "zeros of a wider type": (
        lambda x: x.exp() + torch.zeros(2, 1, 4, dtype=torch.float64),
        lambda x: x.exp(),
    ),
    "nearly zeros": (lambda x: x.exp() + torch.eye(4)[:3], lambda x: x.exp()),
    "draws": (
        lambda x: (lambda a, b: a - b)(torch.rand_like(x), torch.rand_like(x)),
        lambda x: (lambda b, a: a - b)(torch.rand_like(x), torch.rand_like(x)),
    ),
    "order of writes": (
        lambda x: (lambda e: (e.add_(1), e.mul_(2))[1])(x.exp()),
        lambda x: (lambda e: (e.mul_(2), e.add_(1))[1])(x.exp()),
    ),
    "write after zeros": (
        lambda x: (lambda e: ((e + torch.zeros(4)).mul_(2), e + 1)[1])(x.exp()),
        lambda x: (lambda e: (e.mul_(2), e + 1)[1])(x.exp()),
    ),
    "write after an alias": (
        lambda x: (lambda e: (e[:].mul_(2), e + 0)[1])(x.exp()),
        lambda x: (lambda e: (e.mul(2), e + 0)[1])(x.exp()),
    ),
}
Z = torch.tensor([0.0, -0.0]).reshape(2, 1, 1)


@pytest.mark.parametrize("name", SAME)
def test_the_same_computation_is_one_program(name: str) -> None:
    one, other = programs(*SAME[name])
    assert one == other


@pytest.mark.parametrize("name", OTHER)
def test_other_computations_are_other_programs(name: str) -> None:
    one, other = programs(*OTHER[name])
    assert one != other


class Counting(nn.Module):
    """Reads a buffer, or a copy of it, before or after it counts on."""

    def __init__(self, read: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.read = read
        self.register_buffer("seen", torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.read(self.seen)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(tensor.dtype, copy=True)


COUNTED = {
    "itself": lambda seen: seen,
    "a copy": copied,
    "counted on": lambda seen: seen.add_(1),
    "a copy, counted on after": lambda seen: (copied(seen), seen.add_(1))[0],
    "itself, after a copy was counted on": lambda seen: (copied(seen).add_(1), seen)[1],
}


def test_a_copy_of_a_buffer_is_the_buffer_as_it_was() -> None:
    found = {}
    for name, read in COUNTED.items():
        one = dry_run(Counting(read), (torch.randn(2, 4),), {})
        found[name] = (one.program, *one.outputs(None).items())
    assert found["itself"] == found["a copy"]
    before = "a copy, counted on after", "itself, after a copy was counted on"
    assert found[before[0]] == found[before[1]]
    different = [found[name] for name in ("itself", "counted on", before[0])]
    assert all(one != other for at, one in enumerate(different) for other in different[:at])


def language_models() -> dict[str, nn.Module]:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 50, "num_hidden_layers": 1}
    return {
        "Llama": LlamaForCausalLM(
            LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
        ),
        "BERT": BertModel(BertConfig(**sizes, num_attention_heads=4)),
    }


@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_exported_language_models_are_not_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    place = "fxrebasin.passes.trace.comparing._numeric_difference"
    monkeypatch.setattr(place, lambda *args: compared.append(args))
    result = trace(language_models()[name].eval(), (torch.randint(0, 50, (2, 6)),))
    assert (result.tracer, result.any_batch, compared) == ("export", True, [])


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        kept = h * 2
        h += kept
        h *= self.first.bias
        return self.last(torch.relu_(h))


def test_sums_in_place_are_known_to_be_those_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    place = "fxrebasin.passes.trace.comparing._numeric_difference"
    monkeypatch.setattr(place, lambda *args: compared.append(args))
    assert trace(InPlace(), (torch.randn(2, 4),)).tracer == "fx"
    assert compared == []
