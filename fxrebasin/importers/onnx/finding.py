"""The symmetry of a graph: which inputs it is run on, and which weights are constants."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxrebasin.analysis import symmetry_of
from fxrebasin.choices import Choices
from fxrebasin.errors import InputError
from fxrebasin.importers.onnx.inputs import attempts, drawn_inputs, given_inputs
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.roles import bits_of
from fxrebasin.running.messages import first_lines
from fxrebasin.symmetry import Symmetry

_SAME = 1e-9
_LOOKED_THROUGH = 1 << 22
"""The largest tensor, in elements, in which equal numbers are looked for."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was found of a graph.

    Args:
        symmetry: with the file's names.
        module: what was analysed.
        inputs: on which, by name.
        others: inputs of other sizes, if the file allows them.
    """

    symmetry: Symmetry
    module: OnnxModule
    inputs: Mapping[str, Tensor]
    others: tuple[Mapping[str, Tensor], ...]

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The inputs in the order of the file."""
        return tuple(self.inputs.values())


def find(
    source: OnnxSource,
    example: Any = None,
    choices: Choices | None = None,
    equal: Collection[str] = (),
) -> Found:
    """Analyse a graph.

    Weights that cannot move, and weights that a reference has bit for bit, may be tables; as
    constants, which are read by their values, they may pin less than as weights, which have to
    be right whatever they hold. Where that is so they are constants.

    Args:
        source: the model.
        example: inputs, by name or in the order of the file; made up if left out.
        choices: of the user.
        equal: names of weights that the reference has bit for bit.

    Raises:
        InputError: the graph does not run on the inputs, or on none that could be made up.
    """
    choices = choices or Choices()
    module = source.module()
    inputs = _inputs(source, module, example)
    symmetry = symmetry_of(module, tuple(inputs[0].values()), {}, choices)

    for constants in _tables(source, symmetry, equal):
        other = source.module(constants)
        better = symmetry_of(other, tuple(inputs[0].values()), {}, choices)
        if better.log10_order() > symmetry.log10_order() + _SAME:
            module, symmetry = other, better
    return Found(symmetry, module, inputs[0], tuple(inputs[1:]))


def _tables(
    source: OnnxSource, symmetry: Symmetry, equal: Collection[str]
) -> Iterator[tuple[str, ...]]:
    """Names of weights that may be better taken for constants, in several choices."""
    still = [name for name in source.state if name not in symmetry.layout]
    still = [name for name in still if repeats_itself(source.parsed.tensors[name])]
    if still:
        yield tuple(still)
    same = [name for name in source.state if name in equal and name not in still]
    repeating = [name for name in same if repeats_itself(source.parsed.tensors[name])]
    if same and len(same) < len(source.state):
        yield (*still, *same)
    if repeating and len(repeating) < len(same):
        yield (*still, *repeating)


def repeats_itself(tensor: Tensor) -> bool:
    """Whether some elements are equal, so that a constant may pin less than its axes.

    Example:
        >>> repeats_itself(torch.tensor([1.0, 2.0, 1.0]))
        True
    """
    if tensor.numel() > _LOOKED_THROUGH:
        return False
    return bool(bits_of(tensor).unique().numel() < tensor.numel())


def _inputs(source: OnnxSource, module: OnnxModule, example: Any) -> list[dict[str, Tensor]]:
    """Inputs that the graph takes: the user's, or made up ones, in two sizes if there are."""
    if example is not None:
        return [given_inputs(source.parsed, example)]
    faults: list[str] = []
    found: list[dict[str, Tensor]] = []
    for attempt in range(attempts(source.parsed)):
        inputs = drawn_inputs(source.parsed, attempt)
        fault = _fault(module, tuple(inputs.values()))
        if fault is None:
            found.append(inputs)
        else:
            faults.append(fault)
        if len(found) == 2:
            break
    if not found:
        shown = ", ".join(f"{n} {tuple(v.shape)}" for n, v in drawn_inputs(source.parsed).items())
        raise InputError(
            f"{source.label} does not run on inputs that were made up ({shown}): {faults[0]}\n"
            "Pass example_inputs, a tensor for each input by its name."
        )
    return found


def _fault(module: OnnxModule, inputs: Sequence[Tensor]) -> str | None:
    """Why a graph does not run; None if it does."""
    try:
        with torch.no_grad():
            module(*(value.clone() for value in inputs))
    except (
        RuntimeError,
        ValueError,
        IndexError,
        TypeError,
        KeyError,
        NotImplementedError,
    ) as error:
        return first_lines(error, 1)
    return None
