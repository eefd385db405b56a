"""Whether two graphs compute the same with the same weights, which is seen by running both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.exporters.verify.input_sets import example_set
from fxrebasin.exporters.verify.outputs import compare_tensors
from fxrebasin.exporters.verify.runs import Subject, Tensors, run_float64
from fxrebasin.importers.onnx.branches import taking, ways_of
from fxrebasin.importers.onnx.graph import Parsed
from fxrebasin.importers.onnx.inputs_of_both import Inputs, inputs_of_both
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.partner import Partner
from fxrebasin.importers.onnx.tails import Fold, without_tails

_ROUNDED = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative errors that constants of short types leave."""

_ROUNDED_FLOAT32 = 1e-5


class OtherInputsError(ArchitectureMismatchError):
    """Two graphs that may correspond take no inputs in common."""


class _InOrder(nn.Module):
    """A graph that returns its outputs in their order; exporters give them other names."""

    def __init__(self, graph: OnnxModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *args: torch.Tensor) -> tuple[Any, ...]:
        return tuple(self.graph(*args).values())


def prove_alike(
    source: OnnxSource,
    reference: OnnxSource,
    found: Mapping[str, Partner],
    folds: Mapping[str, Fold],
) -> None:
    """Run the graph of a file with the tensors of a reference beside the reference.

    What is one with its layer in the reference only is one with it here, too. Of branches that read
    weights each is taken, whatever the inputs are.

    Args:
        source: the file.
        reference: the other one, which takes its inputs in the same order.
        found: tensors of the reference by the names of those that they stand for; the others are
            those of the file.
        folds: what goes into layers, by where it ends.

    Raises:
        ArchitectureMismatchError: they do not compute the same.
    """
    theirs = reference.parsed.tensors
    tensors = {
        name: found[name].of(theirs).to(tensor.dtype) if name in found else tensor
        for name, tensor in source.parsed.tensors.items()
    }
    filled = without_tails(replace(source.parsed, tensors=tensors), folds)
    dtypes = {tensors[name].dtype for name in source.state}
    dtypes |= {theirs[name].dtype for name in reference.state}
    tolerance = max(_ROUNDED.get(dtype, _ROUNDED_FLOAT32) for dtype in dtypes)
    both = [(source, filled), (reference, reference.parsed)]
    faults: list[ArchitectureMismatchError] = []
    try:
        for sets in inputs_of_both(source, reference):
            try:
                _run_both(both, sets, tolerance)
            except ArchitectureMismatchError as error:
                faults.append(error)
                continue
            for way in ways_of(filled, source.state):
                taken = [(item, taking(parsed, item.state, way)) for item, parsed in both]
                _run_both(taken, sets, tolerance)
            return
    except InputError as error:
        raise OtherInputsError(
            f"whether both graphs compute the same cannot be seen: {error}"
        ) from error
    if faults:
        raise faults[0]
    raise ArchitectureMismatchError(
        "whether both graphs compute the same cannot be seen: no inputs are taken by both"
    )


def _run_both(
    models: Sequence[tuple[OnnxSource, Parsed]],
    sets: Sequence[tuple[Inputs, Inputs]],
    tolerance: float,
) -> None:
    found, wanted = (
        run_float64(
            Subject(_InOrder(replace(item, parsed=parsed).module()), label=item.label),
            [example_set(tuple(pair[at].values()), {}) for pair in sets],
        )
        for at, (item, parsed) in enumerate(models)
    )
    for one, two in zip(wanted, found, strict=True):
        _compare(one, two, tolerance)


def _compare(wanted: Tensors | Exception, found: Tensors | Exception, tolerance: float) -> None:
    """Refuse outputs that differ, in order; their names may.

    Raises:
        ArchitectureMismatchError: they do.
    """
    for outcome in (wanted, found):
        if isinstance(outcome, Exception):
            raise ArchitectureMismatchError(
                f"whether both graphs compute the same cannot be seen: {outcome}"
            ) from outcome
    if isinstance(wanted, Exception) or isinstance(found, Exception):
        return
    for name in wanted.keys() | found.keys():
        if name not in wanted or name not in found:
            raise ArchitectureMismatchError(f"only one of the graphs returns the output {name}")
        figures = compare_tensors(name, wanted[name], found[name], tolerance=tolerance)
        if figures.problems or figures.max_rel > tolerance or figures.differing:
            raise ArchitectureMismatchError(
                "with the tensors of the reference the graph computes something else than the "
                f"reference does: output {name} differs by {figures.max_rel:.1e}"
            )
