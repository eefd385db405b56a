"""How far two outputs are apart."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from fxrebasin.reports.equivalence import OutputFigures


def compare_tensors(
    name: str,
    reference: torch.Tensor,
    candidate: torch.Tensor,
    *,
    tolerance: float,
    noise_floor: float | None = None,
) -> OutputFigures:
    """Compare two tensors of any shape; floating-point values in float64, integers exactly.

    Args:
        name: name of the output, for the report.
        reference: what is right by definition.
        candidate: what is compared with it.
        tolerance: largest accepted max |candidate - reference| / max |reference|, without unit.
        noise_floor: carried into the result.

    Non-finite values are looked for first: a NaN, or an infinity that the two do not share, fails
    whatever the tolerance; the finite rest is compared.
    """
    exact = not (reference.is_floating_point() or reference.is_complex())
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
    return _with_float_error(figures, _wide(reference), _wide(candidate))


def relative_error(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """max |candidate - reference| / max |reference| in float64, where both are finite.

    0 if both tensors are zero or empty, inf if only the reference is zero. Any one shape.

    Example:
        >>> relative_error(torch.tensor([4.0, 0.0]), torch.tensor([4.0, 1.0]))
        0.25
    """
    left, right = _shared(_wide(reference), _wide(candidate))
    return _ratio(_peak(right - left), _peak(left))


def _shared(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with zeros where either is not finite."""
    finite = torch.isfinite(left) & torch.isfinite(right)
    return left.where(finite, 0), right.where(finite, 0)


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
    findings, fatal = _non_finite(left, right)
    if fatal:
        return replace(figures, non_finite=findings, problems=findings)
    left, right = _shared(left, right)
    return replace(
        figures,
        max_abs=_peak(right - left),
        max_rel=_ratio(_peak(right - left), _peak(left)),
        mean_abs=float((right - left).abs().mean()) if left.numel() else 0.0,
        cosine=_cosine(left, right),
        top1=_top1(left, right),
        non_finite=findings,
    )


def _non_finite(left: torch.Tensor, right: torch.Tensor) -> tuple[tuple[str, ...], bool]:
    """What there is that is not finite, in words, and whether it makes the comparison fail."""
    counts = [(int(tensor.isnan().sum()), int(tensor.isinf().sum())) for tensor in (left, right)]
    if counts == [(0, 0), (0, 0)]:
        return (), False
    words = [f"{nan} NaN and {infinite} infinite" for nan, infinite in counts]
    if words[0] == words[1]:
        findings = (f"{words[0]} among {left.numel()} values of both",)
    else:
        findings = (f"{words[0]} among {left.numel()} values, but {words[1]} in the candidate",)
    masked = left.isinf() & (left == right)
    finite = torch.isfinite(left) & torch.isfinite(right)
    return findings, not (bool((masked | finite).all()) and bool(finite.any()))


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().to("cpu", wide)


def _peak(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _ratio(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale else math.inf


def _cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    """Cosine of two finite tensors; 1 if both are zero, 0 if one is; scaled against overflow."""
    scales = _peak(left), _peak(right)
    if 0 in scales:
        return float(scales[0] == scales[1])
    left, right = left.flatten() / scales[0], right.flatten() / scales[1]
    product = torch.vdot(left, right).real / (left.norm() * right.norm())
    return min(1.0, float(product))


def _top1(left: torch.Tensor, right: torch.Tensor) -> float | None:
    if left.is_complex() or left.dim() < 2 or left.shape[-1] < 2 or not left.numel():
        return None
    return float((left.argmax(-1) == right.argmax(-1)).double().mean())
