"""The outputs of a model are seen by its user: none of their axes may move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from fxrebasin.passes.fields.fields import Elements
from fxrebasin.passes.propagate.known_tensors import KnownTensors
from fxrebasin.passes.propagate.model_output import ModelOutput
from fxrebasin.passes.propagate.propagation import Passing, Propagation
from fxrebasin.passes.propagate.recorder import Recorder


def outputs_found(
    tensors: KnownTensors, recorder: Recorder, counts: Mapping[str, Tensor]
) -> list[ModelOutput]:
    """What is known of outputs, but for constants."""
    return [
        ModelOutput(name, tensors.lookup(tensor), recorder.entry(tensor), track.base)
        for name, tensor in counts.items()
        if (track := tensors.memory.find(tensor)) is not None
    ]


def states_returned(
    outputs: Sequence[ModelOutput], states: Mapping[str, tuple[int, ...]]
) -> set[str]:
    """The names of state tensors that the model returns whole."""
    return {
        item.state
        for output in outputs
        for item in output.value.fields
        if isinstance(item, Elements) and item.view.numel() == math.prod(states.get(item.state, ()))
    }


def pin_outputs(result: Propagation, recorder: Recorder, outputs: Sequence[ModelOutput]) -> None:
    """Pin all axes of outputs.

    Those that the model goes on with come last, so that what is found without them is known.
    """
    passing = _passing(recorder, outputs)
    for item in outputs:
        if item not in passing:
            _pin(result, recorder, item)
    if passing:
        result.passing = Passing(tuple(passing), result.fork())
    for item in passing:
        _pin(result, recorder, item)


def _passing(recorder: Recorder, outputs: Sequence[ModelOutput]) -> list[ModelOutput]:
    """The outputs that operators read again, but for the one that is made last."""
    if not outputs:
        return []
    made, read = recorder.made(), recorder.read()
    _, last = max((made.get(item.made[0], -1), item.name) for item in outputs)
    return [item for item in outputs if item.names() & read and item.name != last]


def _pin(result: Propagation, recorder: Recorder, output: ModelOutput) -> None:
    pinned = output.pin(result.ledger)
    recorder.add([output.made], [(output.name, pinned)])
