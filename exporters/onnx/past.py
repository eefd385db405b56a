"""Decoders of transformers with their cache of keys and values as inputs and outputs.

The names are those that optimum writes and its runtime reads: `input_ids`, `attention_mask`,
`position_ids`, `past_key_values.0.key`, `logits`, `present.0.key`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx.cached_sequence import with_both_caches
from fxrebasin.exporters.onnx.capture import Axes
from fxrebasin.exporters.onnx.decoder import Decoder, repeated, sized, with_forward
from fxrebasin.exporters.verify.input_sets import InputSet
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.running.preserve import preserve

Past: TypeAlias = Literal["first"]
FIRST: Past = "first"

_BATCH, _STEPS, _PAST = "batch_size", "sequence_length", "past_sequence_length"
_TOTAL = "total_sequence_length"

# Rows, new steps and steps before: of one row, one step after many, as when text is generated, and
# of none before, as when it begins.
_OTHER_CALLS = ((1, 1, 7), (2, 5, 0), (3, 2, 1), (1, 1, 0))


def with_cache(model: nn.Module, kwargs: Mapping[str, Any], step: Past | bool = True) -> Decoder:
    """Make a decoder that takes and returns its cache of keys and values.

    All keys and values go into the cache, also where attention looks at the last few only and the
    model's own cache forgets the rest: the mask leaves out what is not looked at.

    Args:
        model: of transformers, a decoder or an encoder-decoder; left as it was.
        kwargs: a call of it, for its `input_ids`.
        step: "first" for the first step of an encoder-decoder.

    Raises:
        InputError: the model has no such cache, or the call no such ids.
    """
    names = inspect.signature(model.forward).parameters
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return with_both_caches(model, kwargs, first=step == FIRST)
    if step == FIRST:
        raise InputError(
            f"with_past={FIRST!r} is for encoder-decoders; {type(model).__name__} takes its first "
            "step with an empty cache: pass with_past=True"
        )
    ids = kwargs.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or "past_key_values" not in names:
        raise InputError(
            f"with_past: {type(model).__name__} is not a decoder of transformers that is called "
            "with input_ids of shape [batch, length]. A graph that transform made has no cache "
            "any more: pass with_past=model, the model that it was made of."
        )
    positions = "position_ids" in names
    decoder = with_forward(model, _forward_with_positions if positions else _forward)
    cache = _cache_of(model, ids)
    call = partial(_call, ids, cache, positions)
    rows, steps = ids.shape
    further = [
        InputSet(f"{rows} x {new} steps after {past}", (), call(rows, new, past), batch=rows)
        for rows, new, past in _OTHER_CALLS
    ]
    example = call(rows, max(steps, 2), max(steps, 2) + 1)
    return Decoder(decoder, example, _axes(example), tuple(further))


def _forward(
    self: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    past_key_values: Sequence[Mapping[str, torch.Tensor]],
) -> dict[str, Any]:
    return _step(self, past_key_values, input_ids=input_ids, attention_mask=attention_mask)


def _forward_with_positions(
    self: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    past_key_values: Sequence[Mapping[str, torch.Tensor]],
) -> dict[str, Any]:
    return _step(
        self,
        past_key_values,
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
    )


def _step(
    model: nn.Module, past: Sequence[Mapping[str, torch.Tensor]], **inputs: torch.Tensor
) -> dict[str, Any]:
    transformers: Any = importlib.import_module("transformers")
    cache = transformers.DynamicCache([(layer["key"], layer["value"]) for layer in past])
    call: Any = type(model).forward
    returned = call(model, past_key_values=cache, use_cache=True, return_dict=True, **inputs)
    present = [{"key": layer.keys, "value": layer.values} for layer in cache.layers]
    return {"logits": returned.logits, "present": present}


def _cache_of(model: nn.Module, ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Keys and values of every layer after some tokens."""
    found: list[dict[str, torch.Tensor]] = []

    def run() -> None:
        with preserve(model):
            cache = model(input_ids=ids, use_cache=True, return_dict=True).past_key_values
            found.extend({"key": layer.keys, "value": layer.values} for layer in cache.layers)

    error = attempt(run)
    if error is not None or not found or any(one["key"].dim() != 4 for one in found):
        reason = "it returns none" if error is None else first_lines(error, 1)
        raise InputError(
            f"with_past: {type(model).__name__} has no cache of one key and one value per layer, "
            f"of shape [batch, heads, length, size]: {reason}"
        )
    return found


def _call(
    ids: torch.Tensor,
    cache: Sequence[Mapping[str, torch.Tensor]],
    positions: bool,
    rows: int,
    new: int,
    past: int,
) -> dict[str, Any]:
    """A call with tokens and keys that were given, repeated as often as needed; the first row is
    padded on the left."""
    taken = repeated(ids.flatten(), rows * new).view(rows, new)
    mask = ids.new_ones((rows, past + new))
    if rows > 1 and past > 1:
        mask[0, 0] = 0
    call: dict[str, Any] = {"input_ids": taken, "attention_mask": mask}
    if positions:
        call["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
    call["past_key_values"] = [
        {name: sized(tensor, rows, past) for name, tensor in layer.items()} for layer in cache
    ]
    return call


def _axes(call: Mapping[str, Any]) -> Axes:
    axes: dict[str, dict[int, str]] = {
        name: {0: _BATCH, 1: _TOTAL if name == "attention_mask" else _STEPS}
        for name in call
        if name != "past_key_values"
    }
    return axes | dict(_cache_axes(call["past_key_values"]))


def _cache_axes(cache: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[int, str]]]:
    for number, layer in enumerate(cache):
        for name in layer:
            yield f"past_key_values.{number}.{name}", {0: _BATCH, 2: _PAST}
