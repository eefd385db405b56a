"""What a comparison of two models found: figures per output, and one verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fxrebasin.errors import EquivalenceError
from fxrebasin.facts import Brief, counted
from fxrebasin.wording import listed


@dataclass(frozen=True)
class OutputFigures:
    """How far one output of a model is from the reference's, worst case over all inputs tried.

    Attributes:
        name: where the tensor sits in the returned value: "logits", "0", "hidden_states.2",
            or "output" if the model returns one tensor.
        shape: shape of the reference's tensor for the first inputs.
        dtype: dtype of the reference's tensor, such as "float32".
        max_abs: largest |candidate - reference|, in the unit of the output.
        max_rel: max_abs divided by the largest |reference| of the tensor, so that values close to
            zero are not held against their own size; 0 if both are zero. This is the figure that
            is compared with the tolerance.
        mean_abs: mean of |candidate - reference|.
        cosine: cosine of the angle between the two tensors, flattened.
        top1: share of positions at which the largest entry along the last axis has the same index
            in both; None for integers, for vectors, and where the last axis has fewer than two.
        differing: for integer and boolean outputs, which have to be equal, the number of elements
            that differ; None for floating-point outputs.
        noise_floor: relative error (defined as max_rel is) of the reference itself in its own
            precision against itself in float64, or four units in the last place if that is more or
            was enough; None where nothing has been compared in another precision.
        tolerance: the largest max_rel that passes; 0 for integer outputs.
        elements: number of elements that were compared, over all inputs.
        non_finite: NaN and infinite values found, in words. Infinities of equal sign at equal
            places in both tensors (masked logits) are a finding that does not fail.
        problems: everything that makes the output fail whatever the tolerance.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    max_abs: float
    max_rel: float
    mean_abs: float
    cosine: float
    top1: float | None
    differing: int | None
    noise_floor: float | None
    tolerance: float
    elements: int = 0
    non_finite: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if there is no problem and the error is at most the tolerance."""
        return not self.problems and self.max_rel <= self.tolerance

    @property
    def smallest_tolerance(self) -> float:
        """The smallest tolerance with which this output would have passed; inf if none would."""
        return math.inf if self.problems else self.max_rel

    def worst_of(self, other: OutputFigures) -> OutputFigures:
        """These figures and those of the same output for other inputs, whichever are worse."""
        return replace(
            self,
            max_abs=_worst(self.max_abs, other.max_abs),
            max_rel=_worst(self.max_rel, other.max_rel),
            mean_abs=_worst(self.mean_abs, other.mean_abs),
            cosine=-_worst(-self.cosine, -other.cosine),
            top1=_least(self.top1, other.top1),
            differing=_most(self.differing, other.differing),
            elements=self.elements + other.elements,
            non_finite=tuple(dict.fromkeys((*self.non_finite, *other.non_finite))),
            problems=tuple(dict.fromkeys((*self.problems, *other.problems))),
        )


@dataclass(frozen=True, repr=False)
class EquivalenceReport(Brief):
    """The outcome of comparing a model with another one, or with an ONNX file of it.

    Attributes:
        backend: what ran the candidate: "pytorch-float64" or "onnxruntime-float32"; or "bits", if
            nothing ran and stored tensors were compared.
        outputs: figures per output tensor.
        inputs: the inputs that were compared, in words.
        structure: differences in what the two return (names and number of tensors), in words.
        notes: what the reader should know and what is not a failure: a batch size that had to be
            fixed, inputs that were left out.
        path: the ONNX file, if one was compared or written.
        rows: how many rows of inputs were compared, over all calls; a call without a batch axis
            counts as one. 0 where nothing was run, and what is stored was compared bit for bit.

    Example:
        >>> import torch, fxrebasin
        >>> net = torch.nn.Linear(3, 2)
        >>> fxrebasin.verify(net, net, torch.ones(4, 3)).passed
        True
    """

    backend: str
    outputs: tuple[OutputFigures, ...]
    inputs: tuple[str, ...]
    structure: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    path: str | None = None
    rows: int = 0

    @property
    def passed(self) -> bool:
        """True if both return the same tensors, every one is within its tolerance, and not all
        of them are empty."""
        return (
            any(output.elements for output in self.outputs)
            and not self.structure
            and all(output.passed for output in self.outputs)
        )

    @property
    def worst(self) -> OutputFigures | None:
        """The output that is furthest beyond its tolerance, or closest to it."""
        return max(self.outputs, key=_severity, default=None)

    @property
    def max_abs(self) -> float:
        """Largest absolute error over all outputs; inf if nothing could be compared."""
        return _largest([output.max_abs for output in self.outputs])

    @property
    def max_rel(self) -> float:
        """Largest relative error over all outputs; inf if nothing could be compared."""
        return _largest([output.max_rel for output in self.outputs])

    @property
    def mean_abs(self) -> float:
        """Largest mean absolute error over all outputs; inf if nothing could be compared."""
        return _largest([output.mean_abs for output in self.outputs])

    @property
    def cosine(self) -> float:
        """Smallest cosine over all outputs; -inf if nothing could be compared."""
        return -_largest([-output.cosine for output in self.outputs])

    @property
    def top1(self) -> float | None:
        """Smallest top-1 agreement over the outputs that have one."""
        return min((o.top1 for o in self.outputs if o.top1 is not None), default=None)

    @property
    def noise_floor(self) -> float | None:
        """Largest noise floor over the outputs that have one."""
        return max((o.noise_floor for o in self.outputs if o.noise_floor is not None), default=None)

    @property
    def tolerance(self) -> float:
        """The relative tolerance of the worst output."""
        return 0.0 if self.worst is None else self.worst.tolerance

    @property
    def smallest_tolerance(self) -> float:
        """The smallest relative tolerance with which all would have passed; inf if none would."""
        if self.structure or not any(output.elements for output in self.outputs):
            return math.inf
        return _largest([output.smallest_tolerance for output in self.outputs])

    @property
    def non_finite(self) -> tuple[str, ...]:
        """NaN and infinite values found, in words, each with the name of its output."""
        return tuple(f"{o.name}: {finding}" for o in self.outputs for finding in o.non_finite)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the comparison did not pass, in words; empty if it did."""
        found = list(self.structure)
        for output in self.outputs:
            found += [f"{output.name}: {problem}" for problem in output.problems]
            if not output.problems and not output.passed:
                found.append(
                    f"{output.name}: relative error {output.max_rel:.3g} exceeds the tolerance "
                    f"{output.tolerance:.3g}"
                )
        if not self.outputs and not found:
            found.append("the models return no tensor that could be compared")
        elif not found and not self.passed:
            found.append(f"nothing was compared: {_shapes(self.outputs)}, without elements")
        return tuple(found)

    def raise_if_failed(self) -> None:
        """Do nothing if the comparison passed.

        Raises:
            EquivalenceError: it did not; the message has every failure and the table.
        """
        if not self.passed:
            raise EquivalenceError(f"{self}\n{self.table()}")

    def table(self) -> str:
        """The figures of every output as a text table, then findings and notes, line by line."""
        rows = [_HEADER, *(_row(output) for output in self.outputs)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [f"failure: {failure}" for failure in self.failures]
        findings = [finding for finding in self.non_finite if finding not in self.failures]
        lines += [f"non-finite: {finding}" for finding in findings]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything in the report as dicts, lists, strings and numbers that JSON can hold.

        Figures that are not finite become None.
        """
        outputs = []
        for output in self.outputs:
            figures = {**asdict(output), "passed": output.passed}
            figures["smallest_tolerance"] = output.smallest_tolerance
            outputs.append({key: _plain(value) for key, value in figures.items()})
        summary = {name: _plain(getattr(self, name)) for name in _SUMMARY}
        return {**summary, "outputs": outputs}

    def _facts(self) -> list[tuple[str, str]]:
        facts = [
            ("verdict", self._verdict()),
            ("run on", self.backend),
            ("inputs", ", ".join(self.inputs) or "none"),
            ("outputs", listed([output.name for output in self.outputs], 3) or "none"),
            ("relative error", f"{self.max_rel:.3g}, tolerance {self.tolerance:.3g}"),
        ]
        facts += [("failure", failure) for failure in self.failures[:2]]
        return [*facts, *(("note", note) for note in self.notes[:1])]

    def _verdict(self) -> str:
        """What was found, and on how much: sampled rows prove nothing about others."""
        if not self.passed:
            return "NOT equivalent"
        return f"equivalent on {counted(self.rows, 'row')}" if self.rows else "equal bits"

    def __str__(self) -> str:
        ran = f"inputs: {', '.join(self.inputs)}" if self.inputs else "nothing was run"
        text = f"{self._verdict()} ({self.backend}; {ran})"
        if not self.passed:
            return f"{text}: {'; '.join(self.failures)}"
        return f"{text}: relative error {self.max_rel:.3g}, tolerance {self.tolerance:.3g}"


_SUMMARY = (
    *(
        "passed",
        "backend",
        "path",
        "inputs",
        "rows",
        "max_abs",
        "max_rel",
        "mean_abs",
        "cosine",
        "top1",
    ),
    *("noise_floor", "tolerance", "smallest_tolerance", "structure", "non_finite", "failures"),
    "notes",
)
_HEADER = (
    *("output", "shape", "dtype", "max abs", "max rel", "mean abs", "cosine", "top-1"),
    *("noise floor", "tolerance", "verdict"),
)


def _row(output: OutputFigures) -> tuple[str, ...]:
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    verdict = "pass" if output.passed else "FAIL"
    if output.differing:
        verdict += f" ({output.differing} differ)"
    return (
        output.name,
        "x".join(map(str, output.shape)) or "scalar",
        output.dtype,
        figure(output.max_abs),
        figure(output.max_rel),
        figure(output.mean_abs),
        f"{output.cosine:.9f}",
        "-" if output.top1 is None else f"{output.top1:.2%}",
        figure(output.noise_floor),
        figure(output.tolerance),
        verdict,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value


def _shapes(outputs: Sequence[OutputFigures]) -> str:
    return ", ".join(f"{output.name} has the shape {output.shape}" for output in outputs)


def _severity(output: OutputFigures) -> float:
    smallest = output.smallest_tolerance
    if math.isnan(smallest):
        return math.inf
    if output.tolerance == 0:
        return math.inf if smallest > 0 else 0.0
    return smallest / output.tolerance


def _largest(values: Sequence[float]) -> float:
    largest = -math.inf
    for value in values:
        largest = _worst(largest, value)
    return largest if values else math.inf


def _worst(left: float, right: float) -> float:
    """The larger of two errors, where NaN, unlike in `max`, is larger than everything."""
    return math.nan if math.isnan(left) or math.isnan(right) else max(left, right)


def _least(left: float | None, right: float | None) -> float | None:
    return min((value for value in (left, right) if value is not None), default=None)


def _most(left: int | None, right: int | None) -> int | None:
    return max((value for value in (left, right) if value is not None), default=None)
