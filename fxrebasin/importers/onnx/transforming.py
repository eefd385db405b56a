"""From two ONNX files to a third: the first, with its units in the order of the second's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from fxrebasin.importers.onnx.finding import Found
from fxrebasin.importers.onnx.loading import Source
from fxrebasin.importers.onnx.matching import paired
from fxrebasin.importers.onnx.permuting import permuted
from fxrebasin.passes.match.methods import MatchResult, check_method
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.running.freed import give_back_memory
from fxrebasin.running.outputs import Outputs
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.storage.files import refuse_existing


@in_own_surroundings
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
    ignore: Sequence[str] = (),
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
        ignore: tensors that are not compared; see `fxrebasin.match`.
        **options: of the method.

    Returns:
        The report of `fxrebasin.transform`; its certificate has the file's names.

    Raises:
        InputError: a graph is quantised, does not run, or has operators that nothing computes.
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
        pair = paired(source, ref, outputs, ignore)
    with clock("analyze"):
        found = pair.find(example_inputs)
    with clock("match"):
        matched = pair.match(found, method, seed, options)
    own, wanted, ignored = pair.own, pair.choices.outputs, pair.ignored
    del pair  # with it the weights of the reference, which nothing needs any more
    give_back_memory()
    with clock("rewrite"):
        result = permuted(own, found.runs, matched.permutation, wanted)
    with clock("verify"):
        references = result.check_interpreter()
    with ExitStack() as stack:
        with clock("write"):
            written = stack.enter_context(result.drafted(place, overwrite=overwrite))
        with clock("verify"):
            report = result.prove_file(written, references)
    return _report(matched, found, report, method, clock.seconds, ignored)


def onnx_match(
    source: Source,
    ref: Source,
    *,
    example_inputs: Any = None,
    method: str = "weight",
    seed: int = 0,
    verify: bool = True,
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
    **options: Any,
) -> RebasinReport:
    """What `onnx_transform` does, without writing anything; see `fxrebasin.match`.

    Args:
        source: see `onnx_transform`.
        ref: see `onnx_transform`.
        example_inputs: see `onnx_transform`.
        method: see `onnx_transform`.
        seed: see `onnx_transform`.
        verify: run the graph on the weights in both orders.
        outputs: see `onnx_transform`.
        ignore: see `onnx_transform`.
        **options: of the method.

    Raises:
        InputError: see `onnx_transform`.
        CheckpointError: see `onnx_transform`.
        ArchitectureMismatchError: see `onnx_transform`.
        EquivalenceError: a check failed.

    Example:
        >>> import onnx
        >>> text = '<ir_version: 8, opset_import: [ "" : 17 ]> g (float[n,2] x) => (float[n,1] y)'
        >>> text += '<float[2,3] a = {1,2,3,4,5,6}, float[3,1] b = {7,8,9}>'
        >>> text += ' { h = MatMul(x, a) i = Relu(h) y = MatMul(i, b) }'
        >>> model = onnx.parser.parse_model(text)
        >>> onnx_match(model, ref=model).certificate.is_identity
        True
    """
    check_method(method, options)
    clock = _Clock()
    with clock("read"):
        pair = paired(source, ref, outputs, ignore)
    with clock("analyze"):
        found = pair.find(example_inputs)
    with clock("match"):
        matched = pair.match(found, method, seed, options)
    proof = None
    if verify:
        with clock("verify"):
            result = permuted(pair.own, found.runs, matched.permutation, pair.choices.outputs)
            proof = result.prove(result.check_interpreter())
    return _report(matched, found, proof, method, clock.seconds, pair.ignored)


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


def _report(
    matched: MatchResult,
    found: Found,
    equivalence: EquivalenceReport | None,
    method: str,
    seconds: Mapping[str, float],
    ignored: frozenset[str],
) -> RebasinReport:
    symmetry = found.symmetry
    proved = () if equivalence is None else equivalence.notes
    return RebasinReport(
        method=method,
        objective_before=matched.objective_before,
        objective_after=matched.objective_after,
        distance_before=matched.distance_before,
        distance_after=matched.distance_after,
        sweeps=matched.sweeps,
        seconds=dict(seconds),
        tracer="onnx",
        notes=tuple(dict.fromkeys((*symmetry.notes, *matched.notes, *proved))),
        equivalence=equivalence,
        certificate=matched.permutation,
        log10_order=symmetry.log10_order(),
        unknown_operators=symmetry.unknown_operators,
        ignored=tuple(sorted(ignored)),
    )
