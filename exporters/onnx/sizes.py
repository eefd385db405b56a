"""Other sizes of the dynamic axes of a file, to prove it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx.axes import sizes_of
from fxrebasin.exporters.onnx.capture import Axes, Captured
from fxrebasin.exporters.verify.input_names import named_inputs
from fxrebasin.exporters.verify.input_sets import InputSet, with_sizes
from fxrebasin.exporters.verify.runs import Subject, fault_of, run_native

_CHANGES: tuple[Callable[[int], int], ...] = (
    lambda size: size + 1,
    lambda size: size - 1,
    lambda size: 2 * size,
    lambda size: size // 2,
)


class Sizes:
    """Finds sizes that the model takes: others than the example's, and those that are special.

    A size is special if PyTorch relied on sizes not being so, and 1, along which values may be
    repeated. The file has to be right for these as well, or the model has to refuse them.

    Args:
        subject: the model.
        example: the inputs that were given.
        axes: the dynamic ones.
        captured: what the file was made of.

    Attributes:
        axes: the dynamic ones.
        objections: PyTorch's reasons against sizes that are tried, in words.
    """

    def __init__(self, subject: Subject, example: InputSet, axes: Axes, captured: Captured) -> None:
        self.axes = axes
        self.objections: list[str] = []
        self._subject, self._example, self._captured = subject, example, captured
        tensors = named_inputs(subject.model, example.args, example.kwargs)
        self._known = sizes_of(axes, tensors)
        first = next((name for name, tensor in tensors.items() if tensor.dim()), None)
        self._batch = None if first is None else axes.get(first, {}).get(0)

    @property
    def any_batch(self) -> bool:
        """Whether the first axis of the first input is dynamic."""
        return self._batch is not None

    def sets(self) -> list[InputSet]:
        """Inputs to run, besides some with another batch.

        Raises:
            InputError: the model takes no other size of an axis.
        """
        return [replace(one, required=True) for one in (*self._other(), *self._special())]

    def _other(self) -> Iterator[InputSet]:
        """All axes with other sizes; one after the other if the model does not take that."""
        labels = [label for label in self._known if label != self._batch]
        if not labels:
            return
        together = self._first_taken(*self._known)
        if together is not None:
            yield together
            return
        for label in labels:
            alone = self._first_taken(label)
            if alone is None:
                raise InputError(
                    f"{label}: the model takes no other size than {self._known[label]}"
                )
            yield alone

    def _first_taken(self, *labels: str) -> InputSet | None:
        for change in _CHANGES:
            sizes = {label: change(self._known[label]) for label in labels}
            if min(sizes.values()) > 0 and self._objection(sizes) is None:
                taken = self._taken(sizes)
                if taken is not None:
                    return taken
        return None

    def _special(self) -> Iterator[InputSet]:
        for label, size in self._known.items():
            below = [n for n in (1, 2, size // 2, size - 1) if 0 < n < size]
            above = [size + 1, 2 * size + 1]
            against = {n: self._objection({label: n}) for n in (*below, *above)}
            special = [next((n for n in some if against[n]), None) for some in (below, above)]
            for n in dict.fromkeys(n for n in special if n is not None):
                if n == 1 and label == self._batch:  # is tried in any case
                    self.objections += [reason for reason in [against[n]] if reason]
                    continue
                taken = self._taken({label: n})
                if taken is not None:
                    self.objections += [reason for reason in [against.get(n)] if reason]
                    yield taken

    def _objection(self, sizes: Mapping[str, int]) -> str | None:
        return self._captured.objection({**self._known, **sizes})

    def _taken(self, sizes: Mapping[str, int]) -> InputSet | None:
        """Inputs of some sizes if the model takes them."""
        one = with_sizes(self._example, self._subject.model, self.axes, sizes)
        return one if fault_of(run_native(self._subject, [one])[0]) is None else None
