"""Soft permutations by Sinkhorn's algorithm, moved by gradients (Peña et al., arXiv:2212.12042).

Peña et al., "Re-basin via implicit Sinkhorn differentiation", CVPR 2023. Here the gradient passes
through the normalisations themselves, which are few.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fxrebasin.solvers.relaxed import Maps, Relaxation

# Normalisations of rows and columns, in turn.
_ROUNDS = 20

Slopes = Callable[[Maps], tuple[float, Maps]]
"""From maps to the value of an objective, which is maximised, and its derivatives."""


class SinkhornAscent:
    """Gradient steps (Adam) on the logarithms of matrices that Sinkhorn makes doubly stochastic.

    Args:
        relaxation: whose maps are moved.
        rate: step size of Adam.
    """

    def __init__(self, relaxation: Relaxation, rate: float) -> None:
        self.relaxation = relaxation
        self._logits = {
            name: torch.zeros_like(m).requires_grad_() for name, m in relaxation.centre().items()
        }
        self._adam = torch.optim.Adam(self._logits.values(), lr=rate) if self._logits else None

    def maps(self) -> dict[str, torch.Tensor]:
        """The soft maps as they are now, differentiable in the logits."""
        return {name: sinkhorn(logits) for name, logits in self._logits.items()}

    def step(self, slopes: Slopes) -> float:
        """One step up; returns the value before it.

        Args:
            slopes: of the objective.
        """
        if self._adam is None:
            return slopes({})[0]
        with torch.enable_grad():
            maps = self.maps()
        value, derivatives = slopes(maps)
        self._adam.zero_grad()
        torch.autograd.backward(
            list(maps.values()), [-derivatives[name].to(m) for name, m in maps.items()]
        )
        self._adam.step()
        return value


def sinkhorn(logits: torch.Tensor) -> torch.Tensor:
    """Doubly stochastic matrices, differentiable in the logarithms of what they are made of.

    Args:
        logits: of shape (..., n, n).

    Example:
        >>> sinkhorn(torch.tensor([[9.0, 0.0], [0.0, 9.0]])).round(decimals=2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    for _ in range(_ROUNDS):
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        logits = logits - logits.logsumexp(dim=-2, keepdim=True)
    return logits.exp()
