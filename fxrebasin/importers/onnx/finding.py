"""The symmetry of a graph: which inputs it is run on, and which weights are constants."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxrebasin.analysis import symmetry_of
from fxrebasin.choices import Choices, choices_for
from fxrebasin.errors import InputError
from fxrebasin.importers.onnx.foreign import CannotRunError, Unknown, onnx_names
from fxrebasin.importers.onnx.graph import Graph, Parsed
from fxrebasin.importers.onnx.inputs import attempts, drawn_inputs, given_inputs
from fxrebasin.importers.onnx.loading import OnnxSource, Source, read
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.rejoining import SAME_ORDER, rejoined
from fxrebasin.importers.onnx.tensors import bits_of
from fxrebasin.layout import same_layout
from fxrebasin.running.messages import first_lines
from fxrebasin.running.outputs import Outputs
from fxrebasin.symmetry import Symmetry
from fxrebasin.wording import listed

_LISTED = 8
_LOOKING_UP = ("Gather", "Scatter", "Embed", "OneHot", "Slice", "Loop", "Scan", "If", "Pad")
_LOOKED_THROUGH = 1 << 22
"""The largest tensor, in elements, in which equal numbers are looked for."""


@dataclass(frozen=True, eq=False)
class Runs:
    """A graph, and what it is run on.

    Args:
        module: the graph.
        inputs: by name; of two sizes, if the file allows it.
    """

    module: OnnxModule
    inputs: tuple[Mapping[str, Tensor], ...]

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The first inputs in the order of the file."""
        return tuple(self.inputs[0].values())


@dataclass(frozen=True, eq=False)
class Found:
    """What was found of a graph.

    Args:
        symmetry: with the file's names.
        runs: what was analysed, and on which inputs.
    """

    symmetry: Symmetry
    runs: Runs

    @property
    def module(self) -> OnnxModule:
        """What was analysed."""
        return self.runs.module


def find(
    source: OnnxSource,
    example: Any = None,
    choices: Choices | None = None,
    equal: Collection[str] = (),
) -> Found:
    """Analyse a graph.

    Where the file leaves sizes open, it is run with two choices of them, and what holds for both
    counts. Weights that cannot move, and weights that a reference has bit for bit, may be tables:
    as constants, which are read by their values, they may pin less than as weights, which have to
    be right whatever they hold. Where that is so they are constants. Uses of one tensor that may
    move alike, do; see `fxrebasin.importers.onnx.rejoining`.

    Args:
        source: the model.
        example: inputs, by name or in the order of the file; made up if left out.
        choices: of the user.
        equal: names of weights that the reference has bit for bit.

    Raises:
        InputError: the graph does not run on the inputs, or on none that could be made up.
    """
    choices = choices or Choices()
    try:
        module = source.module()
        inputs, symmetry = _analysed(source, module, example, choices)
    except CannotRunError:
        module = source.module(unknown=Unknown.GUESSED)
        inputs, symmetry = _analysed(source, module, example, choices)
    for constants in _tables(source, symmetry, equal):
        other = source.module(constants)
        better = _of_every_size(source, other, inputs, choices)
        if better.log10_order() > symmetry.log10_order() + SAME_ORDER:
            module, symmetry = other, better

    def of_joined(together: Mapping[str, str]) -> Symmetry:
        return _of_every_size(source, source.joined(module, together), inputs, choices)

    symmetry = rejoined(source.parsed, module, symmetry, of_joined)
    return Found(_naming_unknown(source, symmetry), Runs(module, tuple(inputs)))


def _naming_unknown(source: OnnxSource, symmetry: Symmetry) -> Symmetry:
    """The symmetry, with unknown operators as the file calls them.

    Raises:
        InputError: these leave nothing that could move.
    """
    if not symmetry.unknown_operators:
        return symmetry
    names = onnx_names(symmetry.unknown_operators)
    if not symmetry.classes:
        raise InputError(
            f"{source.label} has operators that are not computed here, {listed(names, _LISTED)}, "
            "and since they pin all that they touch, nothing in it can move"
        )
    return symmetry.with_unknown(
        names,
        f"{listed(names, _LISTED)}: not computed here, so that all that they touch is pinned; "
        "where values are needed, onnxruntime computes them, node by node, in float32 where it has "
        "no float64",
    )


def symmetry_of_file(source: Source, example: Any = None, outputs: Outputs = None) -> Symmetry:
    """The symmetry of an ONNX file, in its names; see `fxrebasin.analyze`.

    Args:
        source: the path of a file, or a model in memory.
        example: inputs, by name or in the order of the file; made up if left out.
        outputs: that have to stay as they are; all when left out.

    Raises:
        InputError: the graph is quantised, does not run, or has operators that are not known and
            leave nothing that could move.
        CheckpointError: the file is missing or cannot be read.
    """
    own = read(source)
    return find(own, example, choices_for(own.module(), outputs=outputs)).symmetry


def _analysed(
    source: OnnxSource, module: OnnxModule, example: Any, choices: Choices
) -> tuple[list[dict[str, Tensor]], Symmetry]:
    """Inputs that a graph takes, and its symmetry on them.

    An analysis runs without data, and shows as well as a run whether sizes fit. It does not show
    whether places that are looked up are there.
    """
    if example is not None or _looks_up(source.parsed.graph):
        inputs = made_inputs(source, module, example)
        return inputs, _of_every_size(source, module, inputs, choices)
    found: dict[int, Symmetry] = {}

    def fault(inputs: Mapping[str, Tensor]) -> str | None:
        try:
            found[id(inputs)] = symmetry_of(module, tuple(inputs.values()), {}, choices)
        except CannotRunError:
            raise
        except InputError:
            fault = fault_of(module, inputs)
            if fault is None:
                raise
            return fault
        return None

    inputs = drawn_twice(source, fault)
    of_each = [found[id(one)] for one in inputs]
    return inputs, _common(source, module, inputs, choices, of_each)


def _looks_up(graph: Graph) -> bool:
    """Whether something is read at places that are computed, other than sizes."""
    shapes = {
        name for _, step in graph.all_steps() if step.kind == "Shape" for name in step.outputs
    }
    return any(
        any(word in step.kind for word in _LOOKING_UP) and not shapes.intersection(step.inputs[:1])
        for _, step in graph.all_steps()
    )


def _of_every_size(
    source: OnnxSource, module: OnnxModule, inputs: Sequence[Mapping[str, Tensor]], choices: Choices
) -> Symmetry:
    found = [symmetry_of(module, tuple(item.values()), {}, choices) for item in inputs]
    return _common(source, module, inputs, choices, found)


def _common(
    source: OnnxSource,
    module: OnnxModule,
    inputs: Sequence[Mapping[str, Tensor]],
    choices: Choices,
    found: Sequence[Symmetry],
) -> Symmetry:
    """What holds for inputs of all sizes.

    Where they differ, neither has to hold for the other: then all are run in one call, which
    computes for all what each computes.

    Args:
        source: the model.
        module: its graph.
        inputs: of several sizes.
        choices: of the user.
        found: the symmetry on each of the inputs.
    """
    first, *others = found
    if all(_same_group(first, other) for other in others):
        return first
    values = tuple(value for item in inputs for value in item.values())
    together = symmetry_of(
        source.at_several_sizes(module), values, {}, _for_several(choices, len(inputs))
    )
    sizes = [", ".join(f"{n} {tuple(v.shape)}" for n, v in item.items()) for item in inputs]
    note = (
        f"not the same is free on inputs of several sizes ({'; '.join(sizes)}): what is free on "
        "all of them counts"
    )
    return together.said_as(first, note)


def _same_group(one: Symmetry, other: Symmetry) -> bool:
    return one.classes == other.classes and same_layout(one.layout, other.layout)


def _for_several(choices: Choices, count: int) -> Choices:
    """The same choice of outputs, where there are those of several calls."""
    wanted = choices.outputs
    if wanted is None:
        return choices
    if not callable(wanted):
        names = tuple(f"{at}.{name}" for at in range(count) for name in wanted)
        return replace(choices, outputs=names)
    return replace(choices, outputs=lambda returned: [wanted(item) for item in returned])


def _tables(
    source: OnnxSource, symmetry: Symmetry, equal: Collection[str]
) -> Iterator[tuple[str, ...]]:
    """Names of weights that may be better taken for constants, in several choices."""
    still = [name for name in source.state if name not in symmetry.layout]
    still = [name for name in still if repeats_itself(source.parsed.tensors[name])]
    if still:
        yield tuple(still)
    same = [name for name in source.state if name in equal and name not in still]
    same = [name for name in same if source.parsed.tensors[name].numel() <= _LOOKED_THROUGH]
    repeating = [name for name in same if repeats_itself(source.parsed.tensors[name])]
    pinned_anyway = _beside_data(source.parsed) - symmetry.layout.keys() - set(repeating)
    same = [name for name in same if name not in pinned_anyway]
    if same and len(same) < len(source.state):
        yield (*still, *same)
    if repeating and len(repeating) < len(same):
        yield (*still, *repeating)


def _beside_data(parsed: Parsed) -> set[str]:
    """Names of tensors that nodes read only together with what was computed from the inputs.

    No other constant is computed from these. So of one that has no two equal numbers nothing can
    move but as that of any weight does, whether its numbers are known or not.
    """
    graph = parsed.graph
    if any(step.graphs for step in graph.steps):
        return set()  # bodies read what is around them
    computed = set(graph.inputs)
    alone: set[str] = set()
    for step in graph.steps:
        if not computed.intersection(step.used):
            alone.update(step.inputs)
        else:
            computed.update(step.outputs)
    return {name for local, name in graph.tensors.items() if local not in alone}


def repeats_itself(tensor: Tensor) -> bool:
    """Whether some elements are equal, so that a constant may pin less than its axes.

    Example:
        >>> repeats_itself(torch.tensor([1.0, 2.0, 1.0]))
        True
    """
    if tensor.numel() > _LOOKED_THROUGH:
        return False
    return bool(bits_of(tensor).unique().numel() < tensor.numel())


def made_inputs(source: OnnxSource, module: OnnxModule, example: Any) -> list[dict[str, Tensor]]:
    """Inputs that a graph takes: the user's, or made up ones, in two sizes if there are.

    Args:
        source: the model.
        module: its graph.
        example: what the user gave.

    Raises:
        InputError: they do not fit, or the graph runs on none that could be made up.
    """
    if example is not None:
        return [given_inputs(source.parsed, example)]
    return drawn_twice(source, lambda inputs: fault_of(module, inputs))


def drawn_twice(
    source: OnnxSource, fault: Callable[[Mapping[str, Tensor]], str | None]
) -> list[dict[str, Tensor]]:
    """Inputs in which no fault is found, in two sizes if there are.

    Args:
        source: the model.
        fault: why a graph does not take inputs; None if it does.

    Raises:
        InputError: it takes none.
    """
    faults: list[str] = []

    def taken(numbers: Iterable[int], most: int) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for number in numbers if most else ():
            inputs = drawn_inputs(source.parsed, number)
            reason = fault(inputs)
            found += [inputs] if reason is None else []
            faults.extend([] if reason is None else [reason])
            if len(found) == most:
                break
        return found

    choices = attempts(source.parsed)
    found = taken(choices.usual, 2)
    if len(found) < 2:  # not any size will do, so that what runs need not be right
        found = [*taken(choices.said, 2), *found][:2]
    found += taken(choices.others, 2 - len(found))
    if not found:
        shown = ", ".join(f"{n} {tuple(v.shape)}" for n, v in drawn_inputs(source.parsed).items())
        raise InputError(
            f"{source.label} does not run on inputs that were made up ({shown}): {faults[0]}\n"
            "Pass example_inputs, a tensor for each input by its name."
        )
    return found


def fault_of(module: OnnxModule, inputs: Mapping[str, Tensor]) -> str | None:
    """Why a graph does not run; None if it does.

    Args:
        module: the graph.
        inputs: in the order of the file.
    """
    try:
        with torch.no_grad():
            module(*(value.clone() for value in inputs.values()))
    except CannotRunError:
        return None  # an analysis may do without values, if the file says enough of its sizes
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
