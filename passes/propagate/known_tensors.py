"""The tensors that a model holds and is given, and what is known of all that it meets."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxrebasin.passes.fields.elements import elements_field
from fxrebasin.passes.fields.fields import Value, pinned_value
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.origin import INPUT, Origin
from fxrebasin.passes.propagate.escapes import Escapes
from fxrebasin.passes.propagate.identities import with_square_units
from fxrebasin.passes.propagate.model_state import Held, Role
from fxrebasin.passes.propagate.propagation import Propagation
from fxrebasin.passes.propagate.relied import place_of
from fxrebasin.passes.propagate.spreads import (
    Along,
    Later,
    known,
    of_constant,
    of_input,
    of_state,
)
from fxrebasin.passes.propagate.tracks import Track, named, refresh, spread_of_track
from fxrebasin.running.preserve import tensors_of
from fxrebasin.running.subclasses import like


class KnownTensors:
    """What is known of tensors: those of the model, its inputs, and what operators made of them.

    Attributes:
        memory: what is known, by tensor and by the memory that it looks at.
        states: the shapes of parameters, and of buffers that were declared to be state.
    """

    def __init__(self, result: Propagation, escapes: Escapes, has_data: bool) -> None:
        self.memory = escapes.memory
        self.states: dict[str, tuple[int, ...]] = {}
        self._result, self._escapes, self._has_data = result, escapes, has_data
        self._ledger, self._relied = result.ledger, result.relied
        self._without_data: nn.Module | None = None
        self._buffers: dict[object, tuple[Held, Tensor]] = {}

    def stand_ins(self, held: Sequence[Held]) -> dict[str, Tensor]:
        """Tracked tensors for parameters, clones for buffers; tied tensors share one stand-in."""
        self._result.held = list(held)
        found: dict[str, Tensor] = {}
        for item in held:
            add = self._add_state if item.role is Role.STATE else self._add_buffer
            found.update(dict.fromkeys(item.names, add(item)))
        return found

    def _add_state(self, item: Held) -> Tensor:
        """A tracked stand-in for a state tensor."""
        tensor = item.tensor.detach()
        stand_in = tensor.clone() if self._has_data else without_data(tensor)
        stand_in = like(item.tensor, stand_in)
        self._result.shapes[item.name] = self.states[item.name] = tuple(tensor.shape)
        self._follow(item, stand_in)
        return stand_in

    def _follow(self, item: Held, stand_in: Tensor) -> None:
        """Take a tensor for state, from now on."""
        shape = tuple(stand_in.shape)
        value = Value(shape, elements_field(item.name, shape))
        if item.overlaps:
            ledger = self._ledger
            ledger.origins.append(Origin("shared memory", item.name))
            pinned = pinned_value(shape, f"shares memory with {item.overlaps}, in another view")
            value = Value(shape, join(ledger, [*pinned.fields, *value.fields]))
        track = Track(value, item.name, is_state=True)
        if item.role is Role.STATE and stand_in.is_floating_point():
            track.spread = known(of_state(shape, len(self.states)))
        self.memory.set(stand_in, track)
        self.memory.alias(item.tensor, track)  # for models that hold it elsewhere as well

    def _add_buffer(self, item: Held) -> Tensor:
        """A constant, unless what reads it shows that it is state."""
        stand_in = item.tensor.detach().clone()
        self._result.shapes[item.name] = tuple(stand_in.shape)
        for tensor in (stand_in, item.tensor):
            self._buffers[place_of(tensor)] = (item, stand_in)
        self._relied.begin(item, stand_in)
        self.memory.add_constants([stand_in])
        return stand_in

    def add_input(self, tensor: Tensor) -> Tensor:
        """A tracked stand-in for a model input, all of whose axes are pinned."""
        stand_in = tensor.detach().clone() if self._has_data else without_data(tensor.detach())
        track = Track(pinned_value(tensor.shape, "model input"), name=INPUT)
        track.spread = known(of_input(tensor))
        self.memory.set(stand_in, track)
        return stand_in

    def add_constants(self, model: nn.Module) -> None:
        """Tensors that exist before the run, where others have to be told from them."""
        if self._has_data:
            self.memory.add_constants(o for o in gc.get_objects() if issubclass(type(o), Tensor))
            self.memory.add_constants(tensors_of(model))  # with some that Python has not seen yet
        elif any(parameter.is_meta for parameter in model.parameters()):
            self._without_data = model

    def lookup(self, tensor: Tensor) -> Value:
        """What is known of a tensor; of a constant, where it is not uniform."""
        found = self.memory.find(tensor)
        if found is None and self.recognise(tensor):
            found = self.memory.find(tensor)
        if found is not None:
            return refresh(found, self._ledger)
        value = self.memory.constant_value(tensor)
        value = with_square_units(self._ledger, tensor, value)
        self._relied.on_pattern(tensor, value, self._ledger.origin)
        return value

    def constant(self, tensor: Tensor) -> Tensor | None:
        """The tensor itself, if it is a constant whose values are known."""
        if self.memory.find(tensor) is not None or tensor.is_meta or self.recognise(tensor):
            return None
        if self._escapes.happened and self.memory.is_exposed(tensor):
            return None
        self._relied.on_values(tensor)
        return tensor

    def running_statistics(self, tensor: Tensor) -> Value:
        """The value of a tensor that a normalisation reads: a buffer becomes state."""
        item = self.buffer(tensor)
        if item is not None and item.persistent and self.memory.find(tensor) is None:
            self._follow(item, self._buffers[place_of(tensor)][1])
        return self.lookup(tensor)

    def recognise(self, tensor: Tensor) -> bool:
        """Treat a buffer as state if it may be, since something reads it; returns whether it is."""
        item = self.buffer(tensor)
        if item is None or item.role is not Role.CANDIDATE:
            return False
        if self.memory.find(tensor) is None:
            self._follow(item, self._buffers[place_of(tensor)][1])
            self._result.recognised.setdefault(item.name, item)
        return True

    def recognise_any(self, tensors: Sequence[Tensor]) -> bool:
        """The same, of several tensors; returns whether some of them are state."""
        recognised = [self.recognise(tensor) for tensor in tensors]  # each is to be followed
        return any(recognised)

    def buffer(self, tensor: Tensor) -> Held | None:
        """The buffer that a tensor is, as the model holds it or as its stand-in."""
        found = self._buffers.get(place_of(tensor)) if self._buffers else None
        return None if found is None else found[0]

    def is_tracked(self, func: Any, tensor: Tensor) -> bool:
        """Whether something is known of an operand; else it is a constant, or refused."""
        if self.memory.find(tensor) is not None:
            return True
        if not self._has_data and not tensor.is_meta:  # nothing with data depends on activations
            return self._escapes.given_by_python(func, tensor)
        if self._without_data is not None and not self.memory.is_constant(tensor):
            self.memory.add_constants(tensors_of(self._without_data))
            self._without_data = None
        if self.memory.is_constant(tensor):
            return False
        made_by_torch = func is torch.ops.aten.lift_fresh.default or tensor.numel() <= 1
        if made_by_torch and not tensor.is_meta and not self._escapes.happened:
            self.memory.add_constants([tensor])
            return False
        self._escapes.arrived(tensor)
        return True

    def names(self, tensor: Tensor) -> Value | None:
        """The value of a tensor whose numbers are names of units; None of any other."""
        track = self.memory.find(tensor)
        return None if track is None else named(track, self._ledger)

    def are_apart(self, tensor: Tensor, axis: int, largest: bool) -> bool:
        """Whether numbers along an axis, or the largest of them, are equal by accident only."""
        along = spread_of_operand(tensor, self.memory.find(tensor)).spread().axes[axis]
        return along is Along.APART or (largest and along is Along.TOP)

    def alive(self) -> Iterator[Value]:
        """What is held by something and is not a parameter; views are parts of it."""
        for track in self.memory.alive():
            if track.base is None and not track.is_state:
                pending = track.pieces is not None
                yield refresh(track, self._ledger) if pending else track.value


def spread_of_operand(tensor: Tensor, track: Track | None) -> Later:
    """How the numbers of an operand differ, of which nothing is known if it is a constant."""
    return known(of_constant(tensor)) if track is None else spread_of_track(track)


def without_data(tensor: Tensor) -> Tensor:
    """A meta tensor of the same size and strides."""
    if tensor.device.type == "meta":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
