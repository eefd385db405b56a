"""Writes down operator calls while a model runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.origin import CONSTANT
from fxrebasin.passes.propagate.known_tensors import KnownTensors
from fxrebasin.passes.propagate.record import Entry, Record
from fxrebasin.passes.propagate.routing import Looks
from fxrebasin.passes.propagate.tracks import Track

_WORK_OF_AN_OPERATOR = 1 << 11


class Recorder:
    """Writes down operator calls as they are made.

    Attributes:
        work: how many elements operators made, and how many operators there were, in one number.
    """

    def __init__(self, ledger: Ledger, tensors: KnownTensors, looks: Looks) -> None:
        self.work = 0
        self._ledger, self._tensors, self._looks = ledger, tensors, looks
        self._calls: list[tuple[int, list[Entry], list[Entry]]] = []

    def entry(self, tensor: Tensor, known: Track | None = None) -> Entry:
        """How a tensor is written down.

        Args:
            tensor: an operand, or an output.
            known: what is known of it, if that was looked up.
        """
        track = known or self._tensors.memory.find(tensor)
        if track is None:
            item = self._tensors.buffer(tensor)
            if item is None:
                return CONSTANT, self._tensors.memory.constant_value(tensor)
            return item.name, Value(tuple(tensor.shape))
        return track.name, _shown(track)

    def call(
        self, inputs: Sequence[Entry], outputs: Sequence[Tensor], values: Sequence[Value]
    ) -> None:
        """Write down the call of the operator that was met last, and name its outputs."""
        node = self._ledger.origins[-1].node
        made: list[Entry] = []
        for index, (tensor, value) in enumerate(zip(outputs, values, strict=True)):
            name = node if index == 0 else f"{node}[{index}]"
            track = self._tensors.memory.find(tensor)
            if track is not None:
                track.name = name
            made.append((name, value if track is None else _shown(track)))
        self.add(inputs, made)
        self._looks.made(item for _, item in made)
        self.work += _WORK_OF_AN_OPERATOR + sum(math.prod(value.shape) for value in values)

    def add(self, inputs: Sequence[Entry], outputs: Sequence[Entry]) -> None:
        """Write down what happened last."""
        self._calls.append((self._ledger.origin, list(inputs), list(outputs)))

    def made(self) -> dict[str, int]:
        """When tensors were made, by name: the number of the last call that made one."""
        return {name: at for at, (_, _, makes) in enumerate(self._calls) for name, _ in makes}

    def read(self) -> set[str]:
        """The names of all tensors that operators read."""
        return {name for _, inputs, _ in self._calls for name, _ in inputs}

    def records(self) -> Iterator[Record]:
        """All calls, once nothing more is going to be read."""
        for origin, inputs, outputs in self._calls:
            yield Record(origin, _settled(inputs), _settled(outputs))


def _shown(track: Track) -> Value | Track:
    return track.value if track.seen >= 0 and track.value.sliced is None else track


def _settled(entries: Sequence[Entry]) -> tuple[tuple[str, Value], ...]:
    return tuple((name, item.value if isinstance(item, Track) else item) for name, item in entries)
