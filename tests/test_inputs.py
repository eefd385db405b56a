"""Example inputs are taken as given, inferred from the first layers, or refused with advice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.models.example_inputs import BATCH, normalise_inputs


def sized(**attributes: Any) -> nn.Module:
    """A convolution that only takes images of one size, and says which."""

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            for name, value in attributes.items():
                setattr(self, name, value)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-2:] == (48, 40)
            return self.conv(x)

    return Sized()


class Named(nn.Module):
    """Names its main input, as transformers' models do."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)

    def forward(
        self, mask: Any = None, input_ids: Any = None, decoder_input_ids: Any = None, use_cache=True
    ) -> torch.Tensor:
        assert mask is None
        assert use_cache is False
        return self.embed(input_ids) + self.embed(decoder_input_ids)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 2))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + y


def test_a_tensor_is_one_positional_input() -> None:
    x = torch.zeros(1, 3)
    args, kwargs = normalise_inputs(nn.Linear(3, 2), x)
    assert args[0] is x
    assert (len(args), kwargs) == (1, {})


def test_positional_and_keyword_inputs_are_kept() -> None:
    x, y = torch.zeros(1, 3), torch.zeros(1, 2)
    assert normalise_inputs(Two(), (x, y)) == ((x, y), {})
    assert normalise_inputs(Two(), [x], {"y": y}) == ((x,), {"y": y})
    assert normalise_inputs(Two(), None, {"x": x, "y": y}) == ((), {"x": x, "y": y})


INFERRED = {
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (BATCH, 784)),
    "image": (lambda: nn.Conv2d(3, 8, 3), (BATCH, 3, 224, 224)),
    "image of 28": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2 * 24 * 24, 3)),
        (BATCH, 1, 28, 28),
    ),
    "image of 8": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(128, 3)),
        (BATCH, 1, 8, 8),
    ),
    "stated size": (lambda: sized(image_size=(48, 40)), (BATCH, 3, 48, 40)),
    "patches": (
        lambda: nn.Sequential(nn.Unfold(16, stride=16), nn.Flatten(), nn.Linear(150528, 2)),
        (BATCH, 3, 224, 224),
    ),
    "signal": (lambda: nn.Conv1d(2, 3, 5), (BATCH, 2, 1024)),
    "noise": (lambda: nn.ConvTranspose2d(7, 3, 4), (BATCH, 7, 4, 4)),
    "ids": (lambda: nn.Embedding(50, 3), (BATCH, 16)),
    "lstm": (lambda: nn.LSTM(5, 6), (16, BATCH, 5)),
    "gru": (lambda: nn.GRU(5, 6, batch_first=True, bidirectional=True), (BATCH, 16, 5)),
    "cell": (lambda: nn.GRUCell(5, 6), (BATCH, 5)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2), (16, BATCH, 8)),
}


@pytest.mark.parametrize("name", INFERRED)
def test_inputs_are_inferred_from_the_first_layers(name: str) -> None:
    build, shape = INFERRED[name]
    (x,), kwargs = normalise_inputs(build())
    assert (tuple(x.shape), kwargs) == (shape, {})


def test_inferred_inputs_are_always_the_same_and_draw_from_no_global_state() -> None:
    model = nn.Linear(3, 2).double()
    state = torch.get_rng_state()
    (first,), _ = normalise_inputs(model)
    (second,), _ = normalise_inputs(model)
    assert torch.equal(first, second)
    assert first.dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), state)


def test_token_ids_are_in_the_vocabulary_and_no_padding() -> None:
    (ids,), _ = normalise_inputs(nn.Embedding(5, 3, padding_idx=2))
    assert ids.dtype == torch.int64
    assert set(ids.unique().tolist()) == {0, 1, 3, 4}


def test_token_ids_are_no_longer_than_the_table_of_positions() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(50, 4), nn.Embedding(8, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))

    (ids,), _ = normalise_inputs(Tiny())
    assert ids.shape == (BATCH, 8)


def test_models_that_name_their_inputs_get_them_by_name() -> None:
    args, kwargs = normalise_inputs(Named())
    assert args == ()
    assert sorted(kwargs) == ["decoder_input_ids", "input_ids", "use_cache"]


def test_models_without_weights_get_inputs_without_values() -> None:
    (x,), _ = normalise_inputs(nn.Linear(3, 2, device="meta"))
    assert x.is_meta


def test_models_that_ask_for_values_are_run_in_earnest() -> None:
    class Asks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    (x,), _ = normalise_inputs(Asks(3, 2))
    assert x.shape == (BATCH, 3)


def test_wrong_inputs_are_refused_with_what_the_model_says_and_where() -> None:
    with pytest.raises(InputError) as caught:
        normalise_inputs(Two(), (torch.zeros(1, 4), torch.zeros(1, 2)))
    text = str(caught.value)
    assert "Two(float32[1, 4], float32[1, 2])" in text
    assert "in 'inner.0' RuntimeError: mat1 and mat2 shapes cannot be multiplied" in text
    assert "forward takes (x, y)" in text
    assert "torch.randn(2, 3)" in text


def test_missing_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="missing 1 required positional argument: 'y'"):
        normalise_inputs(Two(), torch.zeros(1, 3))


@pytest.mark.parametrize("build", [nn.ReLU, Two, lambda: nn.Bilinear(2, 3, 4)])
def test_what_cannot_be_inferred_is_refused_with_an_example(build: Any) -> None:
    with pytest.raises(InputError, match=r"pass for instance example_inputs=\(torch.randn"):
        normalise_inputs(build())


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        ([[1.0]], None, "does not run"),
        ("text", None, "of type str; expected a torch.Tensor"),
        ({"x": torch.zeros(1, 3)}, None, "as example_kwargs"),
        (torch.zeros(1, 3), [1], "example_kwargs is of type list"),
        (torch.zeros(1, 3), {1: 2}, "names must be strings"),
    ],
)
def test_inputs_of_the_wrong_kind_are_refused(inputs: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalise_inputs(nn.Linear(3, 2), inputs, kwargs)


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        (torch.zeros(0, 3), None, r"example_inputs\[0\] is float32\[0, 3\]: axis 0 has size 0"),
        (([torch.zeros(2, 3, 0)],), None, r"example_inputs\[0\]\[0\] is .* axis 2 has size 0"),
        (None, {"x": {"y": torch.zeros(2, 0)}}, r"example_kwargs\['x'\]\['y'\] is .* axis 1"),
    ],
)
@pytest.mark.parametrize("call", [fxrebasin.analyze, fxrebasin.verify, fxrebasin.match])
def test_inputs_without_elements_are_refused(
    call: Callable[..., Any], inputs: Any, kwargs: Any, message: str
) -> None:
    model = nn.Linear(3, 2)
    others = () if call is fxrebasin.analyze else (nn.Linear(3, 2),)
    with pytest.raises(InputError, match=message):
        call(model, *others, example_inputs=inputs, example_kwargs=kwargs)


def test_outputs_without_elements_prove_nothing() -> None:
    class Nothing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:0]

    report = fxrebasin.verify(Nothing(3, 2), Nothing(3, 2), torch.randn(2, 3))
    assert not report.passed
    assert "without elements" in str(report)
    assert report.smallest_tolerance == float("inf")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_is_called_that(error: Exception) -> None:
    class Hungry(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(InputError, match="not enough memory"):
        fxrebasin.analyze(Hungry(3, 2), torch.randn(2, 3))


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    normalise_inputs(model)
    normalise_inputs(model, torch.randn(2, 1, 9, 9))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
