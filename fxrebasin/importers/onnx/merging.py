"""Files between files: the weights of several ONNX files of one graph, averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.exporters.verify.onnx_session import OnnxModel
from fxrebasin.importers.onnx.alike import prove_alike
from fxrebasin.importers.onnx.correspondence import correspondence
from fxrebasin.importers.onnx.joining import joined
from fxrebasin.importers.onnx.loading import OnnxSource, Source, read
from fxrebasin.importers.onnx.partner import Correspondence, Partner
from fxrebasin.importers.onnx.ports import with_ports_of
from fxrebasin.importers.onnx.roles import weights_of
from fxrebasin.importers.onnx.unread import counterpart, unread
from fxrebasin.importers.onnx.writing import changed, draft
from fxrebasin.importers.onnx.written import tensors_written
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.storage.files import refuse_existing

_SUM = 1e-6


@in_own_surroundings
def onnx_merge(
    sources: Sequence[Source],
    out: str | PathLike[str],
    weights: Sequence[float] | None = None,
    *,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write the weighted mean of ONNX files of one graph, which have been re-based before.

    The result is the first file with other numbers. Only weights are averaged, in float64, those
    that no two files differ in stay as they are bit for bit. With two files and weights of
    `(1 - t, t)` it is the model at `t` of the way from the first to the second. Averages of
    running statistics are not those of the averaged model: recalibrate, or compare what it is
    worth without.

    Args:
        sources: paths of files, or models in memory; the first is the one that is followed.
        out: the path of the result.
        weights: one for each, with the sum 1; equal ones when left out.
        overwrite: replace a file that exists.

    Returns:
        The names of the tensors that were averaged.

    Raises:
        InputError: there are fewer than two files, or weights do not fit.
        ArchitectureMismatchError: the graphs differ; the first difference is named.
        CheckpointError: a file is missing or cannot be read.
        ExportError: onnxruntime does not take the result; then nothing is written.
        EquivalenceError: what was written is not the mean; then nothing is written.

    Example:
        >>> import onnx
        >>> text = '<ir_version: 8, opset_import: [ "" : 17 ]> g (float[2] x) => (float[2] y)'
        >>> a, b = (
        ...     onnx.parser.parse_model(text + f"<float[2] w = {{1, {last}}}> {{ y = Mul(x, w) }}")
        ...     for last in (2, 4)
        ... )
        >>> onnx_merge([a, b], "mean.onnx", weights=(0.25, 0.75))
        ('w',)
        >>> onnx.numpy_helper.to_array(onnx.load("mean.onnx").graph.initializer[0])
        array([1. , 3.5], dtype=float32)
    """
    _shares(len(sources), weights)  # refused before anything is read
    place = Path(out)
    refuse_existing([place], overwrite=overwrite)
    read_ones = [read(item, f"file {at + 1}" * _unnamed(item)) for at, item in enumerate(sources)]
    return merge_sources(read_ones, place, weights, overwrite=overwrite)


def merge_sources(
    sources: Sequence[OnnxSource],
    out: Path,
    weights: Sequence[float] | None = None,
    *,
    overwrite: bool,
) -> tuple[str, ...]:
    """What `onnx_merge` does, of files that have been read, whatever messages call these.

    Args:
        sources: the files.
        out: the path of the result.
        weights: one for each, with the sum 1; equal ones when left out.
        overwrite: replace a file that exists.
    """
    shares = _shares(len(sources), weights)
    first, *others = sources
    pairs = [_tensors(first, other) for other in others]
    averaged, unread_ones = {}, unread(first.parsed)
    for name in weights_of(first.parsed):
        mine = first.parsed.tensors[name]
        stacked = [mine]
        for other, pair in zip(others, pairs, strict=True):
            if name in unread_ones:
                found = counterpart(name, unread_ones[name], other.parsed, pair, mine)
            else:
                found = _partner(other, pair.get(name), mine)
            stacked.append(found)
        averaged[name] = _mean(stacked, shares)
    new = changed(first.parsed, averaged)
    folder = None if first.path is None else first.path.parent
    with draft(first.proto, first.parsed, new, out, folder, overwrite=overwrite) as written:
        tensors_written(written, first.parsed, new)
        OnnxModel(written, "the result")
    return tuple(new)


def _unnamed(source: Source) -> bool:
    return not isinstance(source, str | PathLike)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise InputError(f"{count} files were given; a mean takes two or more")
    found = [1 / count] * count if weights is None else [float(item) for item in weights]
    if len(found) != count or not all(map(math.isfinite, found)) or abs(sum(found) - 1) > _SUM:
        raise InputError(
            f"weights are {found} for {count} files; pass one number for each, with the sum 1"
        )
    return found


def _tensors(first: OnnxSource, other: OnnxSource) -> Mapping[str, Partner]:
    """The tensors of another file, by the names of the first's.

    With them the first file computes what the other one does; otherwise what is written would be no
    mean of the two.

    Raises:
        InputError: the first has them in two where the other has one, which has no mean.
        ArchitectureMismatchError: it computes something else.
    """
    found = correspondence(first, other)
    if found.numbers:
        raise ArchitectureMismatchError(_other_numbers(first, other, found))
    if not found.alike:
        found = _proved(first, with_ports_of(other, first), found)
    if found.forms:
        raise InputError(
            f"{other.label} has in one what {first.label} has as a layer and what scales it "
            f"({next(iter(found.forms))}): the first file is followed, so put the one first that "
            "has it in one"
        )
    return found.tensors


def _proved(first: OnnxSource, other: OnnxSource, found: Correspondence) -> Correspondence:
    """The same tensors, or others, with which the first file computes what the other one does."""
    weights = set(weights_of(first.parsed))
    averaged = {name: found.tensors[name] for name in found.tensors.keys() & weights}
    try:
        prove_alike(first, other, averaged, {})
    except ArchitectureMismatchError as error:
        try:
            return joined(first, other, ())
        except ArchitectureMismatchError:
            raise ArchitectureMismatchError(
                f"{other.label} has no mean with {first.label}, whose graph would not be its own "
                f"with the same weights: {error}"
            ) from error
    return found


def _other_numbers(first: OnnxSource, other: OnnxSource, found: Correspondence) -> str:
    name, more = found.numbers[0], len(found.numbers) - 1
    which = f"{name} of {first.label}" + f" (and {more} more)" * bool(more)
    return (
        f"{other.label} has no mean with {first.label}: {which} is no weight, which could be "
        f"averaged, and {found.tensors[name].name} holds other numbers"
    )


def _partner(other: OnnxSource, partner: Partner | None, like: Tensor) -> Tensor:
    """The tensor of another file; the one that there is, where it has none of the kind."""
    if partner is None:
        return like
    found = partner.of(other.parsed.tensors)
    if found.shape != like.shape or not found.is_floating_point():
        raise InputError(
            f"{partner.name} of {other.label} is {found.dtype} of the shape {tuple(found.shape)}, "
            f"and the first file has {like.dtype} of the shape {tuple(like.shape)}"
        )
    return found


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean; what all share stays as it is, infinities too."""
    first = values[0]
    total = torch.zeros(first.shape, dtype=torch.float64)
    for value, share in zip(values, shares, strict=True):
        if share:
            total += share * value.double()
    alike = torch.ones(first.shape, dtype=torch.bool)
    for value in values[1:]:
        alike &= value == first
    return torch.where(alike, first, total.to(first.dtype))
