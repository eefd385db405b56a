"""Constants that a symmetry relies on, and whether another state has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.uniformity import digest_of, varying_axes_of
from fxrebasin.wording import spoken

_LISTED = 8


@dataclass(frozen=True)
class Reliance:
    """What a symmetry relies on in a tensor that it does not move.

    Args:
        digest: of its values.
        uniform: the axes along which it has to be one value repeated, where that is all that was
            relied on; None where the values themselves were.
    """

    digest: str
    uniform: tuple[int, ...] | None

    @classmethod
    def on(cls, tensor: Tensor, *, by_value: bool) -> Reliance:
        """What is relied on in a tensor as it is now.

        Args:
            tensor: with values.
            by_value: whether its values are relied on, or only where it is uniform.
        """
        varying = varying_axes_of(tensor)
        axes = [axis for axis, size in enumerate(tensor.shape) if size > 1 and axis not in varying]
        return cls(digest_of(tensor), None if by_value else tuple(axes))

    def fault(self, tensor: Tensor) -> str:
        """What is wrong with a tensor that takes the place of the one that was relied on; "" if
        nothing is.

        Args:
            tensor: of another state.
        """
        if tensor.is_meta:
            return ""
        if self.uniform is not None and all(axis < tensor.ndim for axis in self.uniform):
            differing = sorted({*self.uniform} & {*varying_axes_of(tensor)})
            axes = ", ".join(map(str, differing))
            return f"varies along axis {axes}, where it was uniform" if differing else ""
        return "" if digest_of(tensor) == self.digest else "has other values"


Relied: TypeAlias = Mapping[str, Reliance]
"""By the name of a tensor of the state."""


def contradictions(relied: Relied, state: Mapping[str, Tensor]) -> list[str]:
    """What a state has that a symmetry does not hold for, in words; missing tensors are passed
    over.

    Args:
        relied: what the symmetry relies on.
        state: the one that it was found on, or another.
    """
    found = []
    for name, reliance in relied.items():
        if name in state:
            fault = reliance.fault(state[name])
            found += [f"{name} {fault}"] if fault else []
    return found


def refusal(faults: list[str], what: str) -> ArchitectureMismatchError:
    """The error for a state that a symmetry was not shown to hold for.

    Args:
        faults: from `contradictions`.
        what: whose constants these differ from, in words.
    """
    more = [f"and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
    return ArchitectureMismatchError(
        f"the symmetry was found on a state whose constants differ from {what}:\n  "
        + "\n  ".join([*faults[:_LISTED], *more])
        + "\nConstants decide which units may be permuted. "
        + spoken(
            "Analyse a model that holds this state (load it before `analyze` or `match`), or "
            "declare these buffers with `state_buffers=`.",
            "Match these weights themselves, or declare these buffers with --state-buffers.",
        )
    )
