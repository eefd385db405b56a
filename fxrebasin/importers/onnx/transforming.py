"""From two ONNX files to a third: the first, with its units in the order of the second's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from fxrebasin.choices import choices_for
from fxrebasin.errors import EquivalenceError
from fxrebasin.exporters.verify.equivalence import compare_onnxruntime, compare_states
from fxrebasin.exporters.verify.onnx_session import OnnxModel
from fxrebasin.exporters.verify.references import References
from fxrebasin.importers.onnx.correspondence import partners
from fxrebasin.importers.onnx.finding import Found, find
from fxrebasin.importers.onnx.loading import OnnxSource, Source, read
from fxrebasin.importers.onnx.running import check_interpreter
from fxrebasin.importers.onnx.tensors import bits_of, bytes_of
from fxrebasin.importers.onnx.writing import changed, draft
from fxrebasin.passes.match.methods import MatchResult, check_method, match_states
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.running.outputs import Outputs
from fxrebasin.storage.files import refuse_existing

_STATISTICS = {"BatchNormalization": (3, 4)}
"""Inputs that are permuted and not compared: running statistics."""


def onnx_transform(
    source: Source,
    ref: Source,
    out: str | PathLike[str],
    *,
    example_inputs: Any = None,
    method: str = "weight",
    seed: int = 0,
    overwrite: bool = False,
    outputs: Outputs = None,
    **options: Any,
) -> RebasinReport:
    """Re-base an ONNX file towards another one, without the PyTorch model that either came from.

    The result has the nodes, names, order, opset, inputs and metadata of `source`; some of its
    weights are permuted, each bit for bit, in the encoding in which the file keeps them. It is
    written beside its place and appears there only when these hold:

    - the interpreter of the graph computes what onnxruntime computes of `source`, up to what
      float32 itself leaves open;
    - the weights that were written, read again and run by the interpreter in float64, give the
      outputs of `source` to 1e-10, on inputs of two sizes if the file leaves sizes open;
    - onnxruntime computes the same of the result, with its optimisations and without.

    Args:
        source: the path of a file, or a model in memory, that is re-based.
        ref: the reference, of the same graph; its names may differ.
        out: the path of the result.
        example_inputs: a tensor or array for each input, by its name or in the order of the file;
            made up if left out.
        method: as for `fxrebasin.match`.
        seed: the same seed gives the same file.
        overwrite: replace a file that exists.
        outputs: names or patterns of the outputs that have to stay as they are; all when left out.
        **options: of the method.

    Returns:
        The report of `fxrebasin.transform`; its certificate has the file's names.

    Raises:
        InputError: a graph is quantised, has operators that are not known, or does not run.
        CheckpointError: a file is missing, cut off, or its data lie outside its folder.
        ArchitectureMismatchError: the graphs differ; the first difference is named.
        EquivalenceError: a check failed, and nothing was written.

    Example:
        >>> import onnx, torch
        >>> text = '<ir_version: 8, opset_import: [ "" : 17 ]> g (float[n,2] x) => (float[n,1] y)'
        >>> text += '<float[2,3] a = {1,2,3,4,5,6}, float[3,1] b = {7,8,9}>'
        >>> text += ' { h = MatMul(x, a) i = Relu(h) y = MatMul(i, b) }'
        >>> model = onnx.parser.parse_model(text)
        >>> report = onnx_transform(model, ref=model, out="same.onnx")
        >>> report.log10_order > 0, report.equivalence.passed
        (True, True)
    """
    check_method(method, options)
    place = Path(out)
    refuse_existing([place], overwrite=overwrite)
    clock = _Clock()
    with clock("read"):
        own, other = read(source, "the model" * (not _has_path(source))), read(ref)
        pairs = partners(own, other)
    with clock("analyze"):
        choices = choices_for(own.module(), outputs=outputs)
        found = find(own, example_inputs, choices, _equal(own, other, pairs))
    with clock("match"):
        matched = _match(own, other, pairs, found, method, seed, options)
    with clock("rewrite"):
        moved = _moved(found, matched, own.parsed.tensors)
    with clock("verify"):
        references = check_interpreter(own, found.module, found.arguments, choices.outputs)
    folder = None if own.path is None else own.path.parent
    with ExitStack() as stack:
        with clock("write"):
            new = changed(own.parsed, moved)
            file = draft(own.proto, own.parsed, new, place, folder, overwrite=overwrite)
            written = stack.enter_context(file)
        with clock("verify"):
            report = _prove(own, found, written, moved, references)
    return _report(matched, found, report, method, clock.seconds)


def _has_path(source: Source) -> bool:
    return not isinstance(source, onnx.ModelProto)


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


def _equal(own: OnnxSource, other: OnnxSource, pairs: Mapping[str, str]) -> set[str]:
    """Names of weights that both files have bit for bit."""
    return {
        name
        for name in own.state
        if name in pairs and _same_bits(own.parsed.tensors[name], other.parsed.tensors[pairs[name]])
    }


def _same_bits(mine: Tensor, theirs: Tensor) -> bool:
    return mine.dtype is theirs.dtype and torch.equal(bits_of(mine), bits_of(theirs))


def _statistics(source: OnnxSource) -> set[str]:
    """Names of tensors that normalisations read as running statistics."""
    return {
        graph.tensors[step.inputs[at]]
        for graph, step in source.parsed.graph.all_steps()
        for at in _STATISTICS.get(step.kind, ())
        if at < len(step.inputs) and step.inputs[at] in graph.tensors
    }


def _match(
    own: OnnxSource,
    other: OnnxSource,
    pairs: Mapping[str, str],
    found: Found,
    method: str,
    seed: int,
    options: Mapping[str, Any],
) -> MatchResult:
    names = found.module.file_names
    state_b = {key: own.parsed.tensors[name] for key, name in names.items() if name in pairs}
    state_a = {
        key: other.parsed.tensors[pairs[name]] for key, name in names.items() if name in pairs
    }
    kept = set(own.state) - _statistics(own)
    return match_states(
        found.symmetry,
        state_b,
        state_a,
        method=method,
        seed=seed,
        parameters=[key for key, name in names.items() if name in kept],
        model=found.module,
        **options,
    )


def _moved(found: Found, matched: MatchResult, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in their new order, by their names in the file.

    Raises:
        EquivalenceError: the way back does not lead to the weights that there were.
    """
    names = found.module.file_names
    layout = matched.permutation.layout
    given = {key: state[name] for key, name in names.items() if key in layout}
    moved = matched.permutation.permute_state_dict(given)
    back = matched.permutation.inverse().permute_state_dict(moved)
    for key in given:
        if bytes_of(back[key]) != bytes_of(given[key]):
            raise EquivalenceError(f"{names[key]} does not come back when it is permuted back")
    return {names[key]: moved[key] for key in given}


def _prove(
    own: OnnxSource,
    found: Found,
    written: Path,
    moved: Mapping[str, Tensor],
    references: References,
) -> EquivalenceReport:
    """Read a result again, and run it.

    Raises:
        EquivalenceError: it is not what it should be.
    """
    again = read(written, "the result")
    before = own.parsed.tensors
    if again.parsed.tensors.keys() != before.keys():
        raise EquivalenceError("the result has other tensors than the model")
    for name, tensor in again.parsed.tensors.items():
        if bytes_of(tensor) != bytes_of(moved.get(name, before[name])):
            raise EquivalenceError(f"{name} was not written as it should be")
    names = found.module.file_names
    state = {key: before[name] for key, name in names.items()}
    result = {key: again.parsed.tensors[name] for key, name in names.items()}
    wanted = references.subject.wanted
    reports = [
        compare_states(found.module, state, result, args, {}, wanted, label=own.label)
        for args in (tuple(item.values()) for item in (found.inputs, *found.others))
    ]
    for optimized in (False, True):
        session = OnnxModel(written, "the result", optimized=optimized)
        reports.append(compare_onnxruntime(session, references))
    for report in reports:
        report.raise_if_failed()
    return reports[0]


def _report(
    matched: MatchResult,
    found: Found,
    equivalence: EquivalenceReport,
    method: str,
    seconds: Mapping[str, float],
) -> RebasinReport:
    symmetry = found.symmetry
    return RebasinReport(
        method=method,
        objective_before=matched.objective_before,
        objective_after=matched.objective_after,
        distance_before=matched.distance_before,
        distance_after=matched.distance_after,
        sweeps=matched.sweeps,
        seconds=dict(seconds),
        tracer="onnx",
        notes=tuple(dict.fromkeys((*symmetry.notes, *matched.notes, *equivalence.notes))),
        equivalence=equivalence,
        certificate=matched.permutation,
        log10_order=symmetry.log10_order(),
        unknown_operators=symmetry.unknown_operators,
    )
