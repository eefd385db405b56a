"""Encoder-decoders of transformers with their two caches as inputs and outputs.

Files that generate text are three, as optimum has them: the encoder, which is exported as any
model; `decoder_model.onnx`, the first step, which returns both caches; `decoder_with_past_model`,
every later step, which takes both and returns that of the decoder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx.capture import Axes
from fxrebasin.exporters.onnx.decoder import Decoder, repeated, sized, with_forward
from fxrebasin.exporters.verify.input_sets import InputSet
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.running.preserve import preserve

_BATCH, _STEPS, _PAST = "batch_size", "decoder_sequence_length", "past_decoder_sequence_length"
_SOURCE = "encoder_sequence_length"

# Rows, new steps, steps before and length of the source.
_OTHER_CALLS = ((1, 1, 7, 3), (2, 3, 1, 1), (3, 2, 2, 6))

Layers = Sequence[Mapping[str, Mapping[str, torch.Tensor]]]


def with_both_caches(model: nn.Module, kwargs: Mapping[str, Any], *, first: bool) -> Decoder:
    """Make a decoder of an encoder-decoder that takes and returns its caches.

    Args:
        model: of transformers, an encoder-decoder; left as it was.
        kwargs: a call of it, for its `input_ids`, and `decoder_input_ids` if there are some.
        first: whether it makes the first step, from what the encoder returns.

    Raises:
        InputError: the model has no such caches, or the call no such ids.
    """
    ids = kwargs.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
        raise InputError(
            f"with_past: {type(model).__name__} is an encoder-decoder; pass input_ids of shape "
            "[batch, length]"
        )
    found = _run(model, ids, kwargs.get("decoder_input_ids"))
    decoder = with_forward(model, _first_step if first else _later_step)
    make = found.first_call if first else found.later_call
    rows, source = ids.shape
    further = [
        InputSet(
            f"{rows} x {new} steps" + ("" if first else f" after {past}") + f" of {source}",
            (),
            make(rows, new, past, source),
            batch=rows,
        )
        for rows, new, past, source in _OTHER_CALLS
    ]
    example = make(rows, 2, 3, max(source, 2) + 2)
    return Decoder(decoder, example, _axes(example), tuple(further))


def _first_step(
    self: nn.Module,
    encoder_attention_mask: torch.Tensor,
    input_ids: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
) -> dict[str, Any]:
    caches = importlib.import_module("transformers.cache_utils")
    both = caches.EncoderDecoderCache(caches.DynamicCache(), caches.DynamicCache())
    logits = _step(self, both, encoder_attention_mask, input_ids, encoder_hidden_states)
    own, source = both.self_attention_cache.layers, both.cross_attention_cache.layers
    present = [
        {"decoder": _pair(one), "encoder": _pair(other)}
        for one, other in zip(own, source, strict=True)
    ]
    return {"logits": logits, "present": present}


def _later_step(
    self: Any,
    encoder_attention_mask: torch.Tensor,
    input_ids: torch.Tensor,
    past_key_values: Layers,
) -> dict[str, Any]:
    caches = importlib.import_module("transformers.cache_utils")
    own, source = (
        caches.DynamicCache([(one[kind]["key"], one[kind]["value"]) for one in past_key_values])
        for kind in ("decoder", "encoder")
    )
    both = caches.EncoderDecoderCache(own, source)
    table: torch.Tensor = self.get_input_embeddings().weight
    mask = encoder_attention_mask[..., None].expand(-1, -1, table.shape[1])
    unread = mask.to(table.dtype)  # the cache has all; only the shape is looked at
    logits = _step(self, both, encoder_attention_mask, input_ids, unread)
    return {"logits": logits, "present": [{"decoder": _pair(one)} for one in own.layers]}


def _step(
    model: nn.Module,
    caches: Any,
    encoder_attention_mask: torch.Tensor,
    input_ids: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
) -> torch.Tensor:
    outputs: Any = importlib.import_module("transformers.modeling_outputs")
    call: Any = type(model).forward
    returned = call(
        model,
        attention_mask=encoder_attention_mask,
        decoder_input_ids=input_ids,
        encoder_outputs=outputs.BaseModelOutput(last_hidden_state=encoder_hidden_states),
        past_key_values=caches,
        use_cache=True,
        return_dict=True,
    )
    logits: torch.Tensor = returned.logits
    return logits


def _pair(layer: Any) -> dict[str, torch.Tensor]:
    return {"key": layer.keys, "value": layer.values}


@dataclass(frozen=True, eq=False)
class _Found:
    """What a call of a model shows: ids, states of the encoder, and both caches."""

    ids: torch.Tensor
    states: torch.Tensor
    cache: Layers

    def first_call(self, rows: int, new: int, past: int, source: int) -> dict[str, Any]:
        """A call of the first step; nothing is past."""
        row = torch.arange(rows) % self.states.shape[0]
        place = torch.arange(source) % self.states.shape[1]
        states = self.states.detach()[row][:, place].contiguous()
        return {**self._start(rows, new, source), "encoder_hidden_states": states}

    def later_call(self, rows: int, new: int, past: int, source: int) -> dict[str, Any]:
        """A call of a later step, with keys and values that were seen."""
        steps = {"decoder": past, "encoder": source}
        cache = [
            {
                kind: {name: sized(tensor, rows, steps[kind]) for name, tensor in pair.items()}
                for kind, pair in layer.items()
            }
            for layer in self.cache
        ]
        return {**self._start(rows, new, source), "past_key_values": cache}

    def _start(self, rows: int, new: int, source: int) -> dict[str, Any]:
        """A mask, padded at the end of the first row, and ids."""
        mask = self.ids.new_ones((rows, source))
        if rows > 1 and source > 1:
            mask[0, -1] = 0
        ids = repeated(self.ids.flatten(), rows * new).view(rows, new)
        return {"encoder_attention_mask": mask, "input_ids": ids}


def _run(model: nn.Module, ids: torch.Tensor, start: Any) -> _Found:
    found: list[_Found] = []

    def run() -> None:
        decoder_ids = start if isinstance(start, torch.Tensor) else ids
        with preserve(model):
            returned = model(
                input_ids=ids, decoder_input_ids=decoder_ids, use_cache=True, return_dict=True
            )
        caches = returned.past_key_values
        both = zip(
            caches.self_attention_cache.layers, caches.cross_attention_cache.layers, strict=True
        )
        cache = [{"decoder": _pair(own), "encoder": _pair(source)} for own, source in both]
        found.append(_Found(decoder_ids, returned.encoder_last_hidden_state, cache))

    error = attempt(run)
    if error is not None:
        raise InputError(
            f"with_past: {type(model).__name__} has no two caches of one key and one value per "
            f"layer: {first_lines(error, 1)}"
        )
    return found[0]


def _axes(call: Mapping[str, Any]) -> Axes:
    axes: dict[str, dict[int, str]] = {
        "encoder_attention_mask": {0: _BATCH, 1: _SOURCE},
        "input_ids": {0: _BATCH, 1: _STEPS},
    }
    if "encoder_hidden_states" in call:
        axes["encoder_hidden_states"] = {0: _BATCH, 1: _SOURCE}
    for number, layer in enumerate(call.get("past_key_values", ())):
        for kind, length in (("decoder", _PAST), ("encoder", _SOURCE)):
            for name in layer[kind]:
                axes[f"past_key_values.{number}.{kind}.{name}"] = {0: _BATCH, 2: length}
    return axes
