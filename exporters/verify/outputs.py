"""How far two outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from fxrebasin.reports.equivalence import OutputFigures
from fxrebasin.running.apart import blocks, is_inexact, off_by_own, peak, ratio, unexplained

_OF_ITSELF = 1e3  # times the tolerance: so much may be wrong of a number that is not the largest
_MOST_OF_ITSELF = 0.05
_MULTIPLE = 64  # of rounding errors that were measured


def compare_tensors(
    name: str,
    reference: torch.Tensor,
    candidate: torch.Tensor,
    *,
    tolerance: float,
    noise_floor: float | None = None,
    noise: Callable[[], Iterable[torch.Tensor]] | None = None,
) -> OutputFigures:
    """Compare two tensors of any shape; floating-point values in float64, integers exactly.

    Args:
        name: name of the output, for the report.
        reference: what is right by definition.
        candidate: what is compared with it.
        tolerance: largest accepted max |candidate - reference| / max |reference|, without unit.
        noise_floor: carried into the result.
        noise: measures how large an error rounding makes at each place, better each time. Where it
            is given, numbers that are off by more than a thousand times the tolerance of themselves
            have to be explained by it: beside a mask of -1e9 any error is little.

    Non-finite values are looked for first: a NaN, or an infinity that the two do not share, fails
    whatever the tolerance; the finite rest is compared.
    """
    exact = not is_inexact(reference)
    figures = OutputFigures(
        name=name,
        shape=tuple(reference.shape),
        dtype=str(reference.dtype).removeprefix("torch."),
        max_abs=math.nan,
        max_rel=math.nan,
        mean_abs=math.nan,
        cosine=math.nan,
        top1=None,
        differing=None,
        noise_floor=noise_floor,
        tolerance=0.0 if exact else tolerance,
        elements=reference.numel(),
        problems=_kind_problems(reference, candidate),
    )
    if figures.problems:
        return figures
    if exact:
        return _with_exact_error(figures, reference, candidate)
    figures = _with_float_error(figures, reference, candidate)
    if noise is None or not figures.passed:
        return figures
    return _with_places(figures, reference, candidate, noise)


def _with_places(
    figures: OutputFigures,
    reference: torch.Tensor,
    candidate: torch.Tensor,
    noise: Callable[[], Iterable[torch.Tensor]],
) -> OutputFigures:
    """A problem more where single numbers are off by more than rounding explains."""
    share = min(_OF_ITSELF * figures.tolerance, _MOST_OF_ITSELF)
    if not any(off_by_own(*both, share) for both in blocks(reference, candidate)):
        return figures
    count = reference.numel()
    for measured in noise():
        count = unexplained(reference, candidate, share, _MULTIPLE * measured)
        if not count:
            return figures
    problem = (
        f"{count} of {reference.numel()} values are off by more than {share:.2g} of themselves, "
        "which rounding does not explain; larger ones beside them hide it"
    )
    return replace(figures, problems=(problem,))


def _kind_problems(reference: torch.Tensor, candidate: torch.Tensor) -> tuple[str, ...]:
    problems = []
    if reference.shape != candidate.shape:
        problems.append(f"shape {tuple(candidate.shape)} instead of {tuple(reference.shape)}")
    if _kind(reference) != _kind(candidate):
        problems.append(f"dtype {candidate.dtype} instead of {reference.dtype}")
    return tuple(problems)


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "real"
    return "boolean" if tensor.dtype == torch.bool else "integer"


def _with_exact_error(
    figures: OutputFigures, reference: torch.Tensor, candidate: torch.Tensor
) -> OutputFigures:
    left, right = reference.cpu().to(torch.int64), candidate.cpu().to(torch.int64)
    differing = int((left != right).sum())
    problem = f"{differing} of {left.numel()} {_kind(reference)} values differ"
    return replace(
        _with_float_error(figures, left.double(), right.double()),
        top1=None,
        differing=differing,
        problems=(problem,) if differing else (),
    )


def _with_float_error(
    figures: OutputFigures, left: torch.Tensor, right: torch.Tensor
) -> OutputFigures:
    sums = _Sums()
    for both in blocks(left, right):
        sums.add(*both)
    findings, fatal = sums.non_finite(left.numel())
    if fatal:
        return replace(figures, non_finite=findings, problems=findings)
    ranked = left.dim() > 1 and left.shape[-1] > 1 and not left.is_complex() and left.numel()
    return replace(
        figures,
        max_abs=sums.error,
        max_rel=ratio(sums.error, sums.left.peak),
        mean_abs=sums.errors / left.numel() if left.numel() else 0.0,
        cosine=sums.cosine(),
        top1=sums.same_first * left.shape[-1] / left.numel() if ranked else None,
        non_finite=findings,
    )


@dataclass
class _Side:
    """What is summed up of one of two tensors.

    Attributes:
        nan: how many there are.
        infinite: how many there are.
        peak: largest magnitude of what is finite in both.
        squares: sum of squares, in units of the square of the peak.
    """

    nan: int = 0
    infinite: int = 0
    peak: float = 0.0
    squares: float = 0.0


class _Sums:
    """Figures of two tensors, of which blocks are seen one after the other, once each."""

    def __init__(self) -> None:
        self.left, self.right = _Side(), _Side()
        self.error = self.errors = 0.0  # the largest, and all
        self.same_first = 0  # rows with the largest entry at one place in both
        self._product = 0.0  # in units of both peaks
        self._finite = self._unlike = 0  # places that are not finite, and not one infinity

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Take blocks `[rows, width]` in float64 or complex128."""
        finite = torch.isfinite(left) & torch.isfinite(right)
        count = int(finite.sum())
        self._finite += count
        if count != left.numel():
            for side, block in ((self.left, left), (self.right, right)):
                side.nan += int(block.isnan().sum())
                side.infinite += int(block.isinf().sum())
            self._unlike += int((~finite & ~(left.isinf() & (left == right))).sum())
            left, right = left.where(finite, 0), right.where(finite, 0)
        errors = (right - left).abs()
        self.error = max(self.error, float(errors.max()))
        self.errors += float(errors.sum())
        if not left.is_complex():
            self.same_first += int((left.argmax(-1) == right.argmax(-1)).sum())
        self._correlate(left.flatten(), right.flatten())

    def _correlate(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Sum up products, scaled by the peaks against overflow."""
        shrunk = 1.0
        scaled = []
        for side, block in ((self.left, left), (self.right, right)):
            most = max(side.peak, peak(block))
            by = side.peak / most if most else 1.0
            block = block / most if most else block
            side.peak, side.squares = most, side.squares * by * by + float(block.norm()) ** 2
            shrunk *= by
            scaled.append(block)
        self._product = self._product * shrunk + float(torch.vdot(*scaled).real)

    def cosine(self) -> float:
        """Of what is finite; 1 if both are zero, 0 if one is."""
        if 0 in (self.left.peak, self.right.peak):
            return float(self.left.peak == self.right.peak)
        return min(1.0, self._product / math.sqrt(self.left.squares * self.right.squares))

    def non_finite(self, count: int) -> tuple[tuple[str, ...], bool]:
        """What there is that is not finite, in words, and whether the comparison fails by it."""
        sides = (self.left, self.right)
        if not any(side.nan or side.infinite for side in sides):
            return (), False
        words = [f"{side.nan} NaN and {side.infinite} infinite" for side in sides]
        if words[0] == words[1]:
            findings = (f"{words[0]} among {count} values of both",)
        else:
            findings = (f"{words[0]} among {count} values, but {words[1]} in the candidate",)
        return findings, bool(self._unlike) or not self._finite
