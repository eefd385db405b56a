"""Which axes of the inputs of a file may have any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx.capture import Axes
from fxrebasin.exporters.verify.input_sets import InputSet, is_batched, with_sizes
from fxrebasin.exporters.verify.runs import Subject, fault_of, run_native
from fxrebasin.models.redraw import Manner
from fxrebasin.passes.trace.made_for import MadeFor
from fxrebasin.running.dry_run import dry_run
from fxrebasin.running.messages import attempt, describe
from fxrebasin.running.outputs import Wanted

Dynamic: TypeAlias = Mapping[str, Mapping[int, str] | Sequence[str | None]]
"""Labels of axes by input: by the place of an axis, or for each axis in order, None if fixed."""

BATCH = "batch"

_Place: TypeAlias = tuple[str, int]


def parse_dynamic(texts: Iterable[str]) -> dict[str, dict[int, str]]:
    """Axes as a command line has them: the name of an input, and labels of its axes in order.

    Args:
        texts: such as `input_ids=batch,sequence`; an axis without a label is fixed.

    Raises:
        InputError: a text is not of this form, or an input comes twice.

    Example:
        >>> parse_dynamic(["ids=batch,sequence", "image=batch,,height,width"])
        {'ids': {0: 'batch', 1: 'sequence'}, 'image': {0: 'batch', 2: 'height', 3: 'width'}}
    """
    parsed: dict[str, dict[int, str]] = {}
    for text in texts:
        name, separator, labels = text.partition("=")
        places = {axis: label.strip() for axis, label in enumerate(labels.split(","))}
        places = {axis: label for axis, label in places.items() if label}
        if not separator or not name.strip() or not places:
            raise InputError(
                f"{text!r} does not say which axes are dynamic; expected the name of an input and "
                "labels of its axes, such as input_ids=batch,sequence"
            )
        if name.strip() in parsed:
            raise InputError(f"the axes of {name.strip()} are given twice")
        parsed[name.strip()] = places
    return parsed


def sizes_of(axes: Axes, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The sizes of axes, by their labels.

    Args:
        axes: labels of some axes.
        tensors: the inputs by name.

    Example:
        >>> sizes_of({"x": {0: "batch", 1: "time"}}, {"x": torch.ones(2, 5, 3)})
        {'batch': 2, 'time': 5}
    """
    return {
        label: tensors[name].shape[axis]
        for name, places in axes.items()
        for axis, label in places.items()
    }


def chosen_axes(dynamic: Dynamic, tensors: Mapping[str, torch.Tensor]) -> Axes:
    """The axes that were asked for, checked against the inputs.

    Args:
        dynamic: what the caller gave; axes may be counted from the end.
        tensors: the inputs by name.

    Raises:
        InputError: there is no such input or axis, or axes of one label differ in size.
    """
    axes: dict[str, dict[int, str]] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for name, labels in dynamic.items():
        if name not in tensors:
            raise InputError(
                f"dynamic: there is no input {name!r}; the inputs are {', '.join(tensors)}"
            )
        for axis, label in _places(name, labels, tensors[name]):
            size = tensors[name].shape[axis]
            known, where = sizes.setdefault(label, (size, f"axis {axis} of {name}"))
            if known != size:
                raise InputError(
                    f"dynamic: {label!r} is {known} ({where}) and {size} (axis {axis} of {name}); "
                    "axes with one label have one size"
                )
            axes.setdefault(name, {})[axis] = label
    return axes


def _places(name: str, labels: Any, tensor: torch.Tensor) -> Iterator[tuple[int, str]]:
    if isinstance(labels, str) or not isinstance(labels, Mapping | Sequence):
        raise InputError(
            f"dynamic: {name} has {labels!r}; expected labels by axis, such as "
            "{0: 'batch', 1: 'sequence'}, or a label (or None) for each axis"
        )
    items = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    for axis, label in items:
        if label is None:
            continue
        if not isinstance(label, str) or not label.isidentifier():
            raise InputError(
                f"dynamic: axis {axis} of {name} has the label {label!r}; expected a name"
            )
        if not isinstance(axis, int) or not -tensor.dim() <= axis < tensor.dim():
            raise InputError(f"dynamic: {name} is {describe(tensor)} and has no axis {axis!r}")
        yield axis % tensor.dim(), label


def batch_axes(example: InputSet, tensors: Mapping[str, torch.Tensor]) -> Axes:
    """The first axis of every input that has the size of the batch there.

    Args:
        example: the inputs.
        tensors: the same by name.
    """
    batch = example.batch
    if batch is None:
        return {}
    return {name: {0: BATCH} for name, tensor in tensors.items() if is_batched(tensor, batch)}


def found_axes(
    model: nn.Module, example: InputSet, tensors: Mapping[str, torch.Tensor], wanted: Wanted
) -> Axes:
    """The axes that may have another size as far as a run shows, the batch among them.

    Each axis is tried alone, then together with one of the same size, since a mask is as long as
    what it masks, and with all of them. Runs are without numbers where the model allows it.

    Args:
        model: left as it was.
        example: inputs that it takes.
        tensors: the same by name.
        wanted: which outputs count.
    """
    axes = {name: dict(places) for name, places in batch_axes(example, tensors).items()}
    runs = _Runs(model, example, wanted)
    pending = [
        (name, axis)
        for name, tensor in tensors.items()
        for axis in range(tensor.dim())
        if tensor.shape[axis] > 1 and axis not in axes.get(name, {})
    ]
    while pending:
        first = pending[0]
        size = tensors[first[0]].shape[first[1]]
        equal = [place for place in pending if tensors[place[0]].shape[place[1]] == size]
        pairs = [[first, other] for other in equal[1:]]
        groups = [[first], *pairs, *([equal] if len(equal) > 2 else [])]
        group = next((some for some in groups if runs.take(some, size)), None)
        label = _label(first, tensors[first[0]], axes)
        for name, axis in group or ():
            axes.setdefault(name, {})[axis] = label
        pending = [place for place in pending if place not in (group or [first])]
    return axes


def axes_of_graph(made: MadeFor, example: InputSet, tensors: Mapping[str, torch.Tensor]) -> Axes:
    """The axes that a graph of torch.export was made with open.

    Args:
        made: what is known of the graph.
        example: the inputs.
        tensors: the same by name.
    """
    rows = {(name, 0) for name in batch_axes(example, tensors)}
    all_open = rows <= made.open.keys()
    labels = {made.open[place]: BATCH for place in rows} if all_open else {}
    axes: dict[str, dict[int, str]] = {}
    for (name, axis), size in made.open.items():
        if name in tensors and (all_open or (name, axis) not in rows):
            label = labels.setdefault(size, _label((name, axis), tensors[name], axes))
            axes.setdefault(name, {})[axis] = label
    return axes


def joined(axes: Axes, tensors: Mapping[str, torch.Tensor]) -> Axes:
    """Axes of which those of whole numbers that are equally long have one label.

    A model may fill up a mask that is too short, or cut one that is too long, and then a graph
    holds for one of these only.

    Args:
        axes: with labels of their own.
        tensors: the inputs by name.
    """
    labels: dict[int, str] = {}
    made: dict[str, dict[int, str]] = {}
    for name, places in axes.items():
        for axis, label in places.items():
            whole = is_whole(tensors[name]) and label != BATCH
            size = int(tensors[name].shape[axis])
            made.setdefault(name, {})[axis] = labels.setdefault(size, label) if whole else label
    return made


def labels_of(axes: Axes) -> dict[str, list[tuple[str, int]]]:
    """The axes of each label.

    Example:
        >>> labels_of({"ids": {0: "batch", 1: "sequence"}, "mask": {0: "batch"}})
        {'batch': [('ids', 0), ('mask', 0)], 'sequence': [('ids', 1)]}
    """
    labels: dict[str, list[_Place]] = {}
    for name, places in axes.items():
        for axis, label in places.items():
            labels.setdefault(label, []).append((name, axis))
    return labels


def without(axes: Axes, closed: Iterable[str]) -> Axes:
    """The axes whose labels are not among some."""
    lost = set(closed)
    kept = {
        name: {axis: label for axis, label in places.items() if label not in lost}
        for name, places in axes.items()
    }
    return {name: places for name, places in kept.items() if places}


class _Runs:
    """Tries other sizes of axes."""

    def __init__(self, model: nn.Module, example: InputSet, wanted: Wanted) -> None:
        self._model, self._example, self._wanted = model, example, wanted
        self._dry = self._runs_dry(example)
        # a mask that masks nothing may not be looked at, and may be of any size then
        masked = with_sizes(example, model, {}, {}, Manner.FREE)
        self._manner = Manner.FREE if self._runs(masked) else Manner.USUAL

    def take(self, places: Sequence[_Place], size: int) -> bool:
        """Whether the model takes other sizes of some axes.

        One more or less says little: where patches are cut, it may be a rest that no patch holds.
        With a single one, numbers may be repeated along an axis whose size is fixed.
        """
        axes: dict[str, dict[int, str]] = {}
        for name, axis in places:
            axes.setdefault(name, {})[axis] = "size"
        smaller = max(size // 2, 2)
        return any(
            self._runs(with_sizes(self._example, self._model, axes, {"size": other}, self._manner))
            for other in (2 * size, smaller if smaller < size else size + 1)
        )

    def _runs(self, one: InputSet) -> bool:
        if self._dry:
            return self._runs_dry(one)
        subject = Subject(self._model, wanted=self._wanted)
        return fault_of(run_native(subject, [one])[0]) is None

    def _runs_dry(self, one: InputSet) -> bool:
        return attempt(lambda: dry_run(self._model, one.args, one.kwargs, self._wanted)) is None


def _label(place: _Place, tensor: torch.Tensor, axes: Mapping[str, Mapping[int, Any]]) -> str:
    """What people call such an axis, preceded by the input's name if another has that label."""
    name, axis = place
    used = {label for places in axes.values() for label in places.values()}
    usual = usual_label(axis, tensor)
    candidates = (usual, f"{name.replace('.', '_')}_{usual}", f"{name.replace('.', '_')}_{axis}")
    return next(label for label in candidates if label not in used)


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds whole numbers, such as tokens, or is a mask."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def usual_label(axis: int, tensor: torch.Tensor) -> str:
    """What people call an axis that is not the batch."""
    if is_whole(tensor) or (tensor.dim() == 3 and axis == 1):
        return "sequence"
    if tensor.dim() < 4:
        return "length"
    return {1: "width", 2: "height"}.get(tensor.dim() - axis, "depth")
