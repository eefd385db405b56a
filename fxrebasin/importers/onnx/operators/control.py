"""Control flow: branches and loops, whose bodies are graphs of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fxrebasin.importers.onnx.registry import Site, UnsupportedError, operator, whole
from fxrebasin.running.numberless import has_no_data


class Body(Protocol):
    """A graph of the file.

    Attributes:
        results: names of its outputs.
    """

    results: tuple[str, ...]

    def __call__(self, *values: Any) -> list[Any]:
        """Run it on its inputs."""


@operator("If", reads=(0,))
def branch(condition: Tensor, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    """One of two graphs.

    Without data the condition says nothing, and what comes out may be either. So both are run, and
    their results go together element by element.
    """
    if has_no_data(condition):
        found = _both(condition, then_branch(), else_branch())
        if found is not None:
            return found
    return tuple(then_branch() if bool(condition.reshape(()).item()) else else_branch())


def _both(condition: Tensor, first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...] | None:
    """Either results; None if they have other shapes."""
    pairs = list(zip(first, second, strict=True))
    if not all(
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.shape, one.dtype) == (other.shape, other.dtype)
        for one, other in pairs
    ):
        return None
    return tuple(torch.where(condition.reshape(()), one, other) for one, other in pairs)


@operator("Loop", reads=(0, 1))
def loop(
    trips: Tensor | None = None, condition: Tensor | None = None, *carried: Any, body: Body
) -> tuple[Any, ...]:
    """As often as is said, or as long as a condition holds; some results of each trip are kept."""
    limit = None if trips is None else whole(trips)
    state, kept = list(carried), []
    going = True if condition is None else bool(condition.reshape(()).item())
    done = 0
    while going and (limit is None or done < limit):
        again, *results = body(torch.tensor(done), torch.tensor(True), *state)
        state = results[: len(state)]
        kept.append(results[len(state) :])
        going = bool(again.reshape(()).item())
        done += 1
    if not kept and len(body.results) > 1 + len(state):
        raise UnsupportedError("a Loop that runs not once and collects results")
    return (*state, *(torch.stack(items) for items in zip(*kept, strict=True)))


@operator("Scan")
def scan(
    *values: Tensor,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
    directions: list[int] | None = None,
    site: Site,
) -> tuple[Tensor, ...]:
    """Along an axis of some inputs, slice by slice; with a batch of its own in opset 8."""
    if site.opset < 9:
        return _batched_scan(values[0], values[1:], body, num_scan_inputs, directions)
    count = len(values) - num_scan_inputs
    axes = scan_input_axes or [0] * num_scan_inputs
    turned = scan_input_directions or [0] * num_scan_inputs
    rows = [
        [value.select(axis, at) for at in range(value.shape[axis])]
        for value, axis in zip(values[count:], axes, strict=True)
    ]
    rows = [row[::-1] if back else row for row, back in zip(rows, turned, strict=True)]
    state, kept = list(values[:count]), []
    for slices in zip(*rows, strict=True):
        results = body(*state, *slices)
        state = results[:count]
        kept.append(results[count:])
    if not kept:
        raise UnsupportedError("a Scan over nothing")
    return (*state, *_stacked(kept, scan_output_axes, scan_output_directions))


def _stacked(
    kept: Sequence[Sequence[Tensor]], axes: list[int] | None, turned: list[int] | None
) -> list[Tensor]:
    found = []
    for at, items in enumerate(zip(*kept, strict=True)):
        ordered = items[::-1] if turned and turned[at] else items
        found.append(torch.stack(ordered, axes[at] if axes else 0))
    return found


def _batched_scan(
    lengths: Tensor | None,
    values: Sequence[Tensor],
    body: Body,
    count: int,
    directions: list[int] | None,
) -> tuple[Tensor, ...]:
    if lengths is not None:
        raise UnsupportedError("a Scan over sequences of several lengths")
    states = len(values) - count
    turned = directions or [0] * count
    found = []
    for row in range(values[0].shape[0]):
        state = [value[row] for value in values[:states]]
        given = [
            value[row].flip(0) if back else value[row]
            for value, back in zip(values[states:], turned, strict=True)
        ]
        kept = []
        for slices in zip(*given, strict=True):
            results = body(*state, *slices)
            state = results[:states]
            kept.append(results[states:])
        found.append([*state, *_stacked(kept, None, None)])
    return tuple(torch.stack(items) for items in zip(*found, strict=True))
