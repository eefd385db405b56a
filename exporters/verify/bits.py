"""Are tensors what they should be, bit for bit? One pass over memory, and nothing is run."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxrebasin.reports.equivalence import EquivalenceReport, OutputFigures
from fxrebasin.wording import listed

_SHOWN = 5  # names in a problem
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have one shape, one dtype and the same bits; NaN is equal to itself.

    Example:
        >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
        False
    """
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    return torch.equal(_as_integers(left), _as_integers(right))


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    flat = plain.contiguous().reshape(-1)
    return flat.view(_INTEGERS[flat.element_size()])


def compare_bits(
    tensors: Iterable[tuple[str, torch.Tensor, torch.Tensor]], notes: tuple[str, ...] = ()
) -> EquivalenceReport:
    """A report about stored tensors, compared bit for bit.

    Args:
        tensors: name, what is expected, and what is there; made one after the other.
        notes: for the report.

    Example:
        >>> ones = torch.ones(3)
        >>> report = compare_bits([("weight", ones, ones)])
        >>> report.passed, report.rows
        (True, 0)
    """
    elements, differing, other = 0, 0, []
    for name, expected, found in tensors:
        elements += expected.numel()
        if not same_bits(expected, found):
            differing += expected.numel()
            other.append(name)
    problem = f"{len(other)} tensors have other bits than they should: {listed(other, _SHOWN)}"
    figures = OutputFigures(
        name="state",
        shape=(elements,),
        dtype="bits",
        max_abs=0.0,
        max_rel=0.0,
        mean_abs=0.0,
        cosine=1.0,
        top1=None,
        differing=differing,
        noise_floor=None,
        tolerance=0.0,
        elements=elements,
        problems=(problem,) if other else (),
    )
    return EquivalenceReport(backend="bits", outputs=(figures,), inputs=(), notes=notes)
