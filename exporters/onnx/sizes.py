"""Other sizes of the dynamic axes of a file, to prove it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fxrebasin.exporters.onnx.axes import sizes_of
from fxrebasin.exporters.onnx.capture import Axes, Captured
from fxrebasin.exporters.verify.input_sets import InputSet, with_sizes
from fxrebasin.exporters.verify.runs import Subject, fault_of, run_native
from fxrebasin.models.input_names import named_inputs
from fxrebasin.passes.trace.other_sizes import OtherSizes


class Sizes:
    """Finds inputs of other sizes that the model takes; see `OtherSizes`.

    Args:
        subject: the model.
        example: the inputs that were given.
        axes: the dynamic ones.
        captured: what the file was made of.

    Attributes:
        axes: the dynamic ones.
    """

    def __init__(self, subject: Subject, example: InputSet, axes: Axes, captured: Captured) -> None:
        self.axes = axes
        self._subject, self._example = subject, example
        tensors = named_inputs(subject.model, example.args, example.kwargs)
        known = sizes_of(axes, tensors)
        first = next((name for name, tensor in tensors.items() if tensor.dim()), None)
        self._batch = None if first is None else axes.get(first, {}).get(0)
        self._others = OtherSizes(known, self._batch, captured.objection, self._taken)

    @property
    def any_batch(self) -> bool:
        """Whether the first axis of the first input is dynamic."""
        return self._batch is not None

    @property
    def objections(self) -> list[str]:
        """PyTorch's reasons against sizes that are tried, in words."""
        return self._others.objections

    def sets(self) -> list[InputSet]:
        """Inputs to run, besides some with another batch.

        Raises:
            InputError: the model takes no other size of an axis.
        """
        return [replace(one, required=True) for one in self._others.found()]

    def _taken(self, sizes: Mapping[str, int]) -> InputSet | None:
        """Inputs of some sizes if the model takes them."""
        one = with_sizes(self._example, self._subject.model, self.axes, sizes)
        return one if fault_of(run_native(self._subject, [one])[0]) is None else None
