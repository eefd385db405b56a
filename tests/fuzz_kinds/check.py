"""One random network: what is said of its groups, and what is so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fxrebasin
from fxrebasin.acting import acted
from fxrebasin.running.outputs import counted
from tests.fuzz_kinds import attending, convolving
from tests.fuzz_kinds.words import Form, draw
from tests.support.elements import elements_of
from tests.support.nullity import nullity

PARAMETERS_AT_MOST = 700
"""Of networks whose Jacobian is looked at."""
_CLOSE = 1e-9


class Verdict(Enum):
    """How what was said compares to what is so."""

    WELL = "well"
    LESS = "less than there is"
    MORE = "more than there is"
    OTHER = "another function"
    LARGE = "too large to count"


WRONG = (Verdict.MORE, Verdict.OTHER)


@dataclass(frozen=True)
class Checked:
    """What came of one network.

    Attributes:
        form: the network.
        verdict: in a word.
        dimension: as it was found.
        nullity: of the Jacobian; None if it was not looked at.
        error: by how much elements of the groups change the function, relative to its size.
    """

    form: Form
    verdict: Verdict
    dimension: int
    nullity: int | None
    error: float

    def text(self) -> str:
        """On one line."""
        return (
            f"{self.verdict.value}: {self.dimension} of {self.nullity}, error {self.error:.0e}: "
            f"{self.form.text()}"
        )


def drawn(seed: int, index: int) -> Form:
    """A random network; every third one has convolutions."""
    if index % 3 == 2:
        return draw(convolving.Convolving, convolving.CHOICES, seed, index)
    return draw(attending.Attending, attending.CHOICES, seed, index)


def fill(net: nn.Module, seed: int) -> None:
    """Random numbers, with nothing special about them, in place of all state."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=gen, dtype=torch.float64)
            if name.endswith("var"):
                noise = noise.abs() + 0.5
            elif "norm" in name and name.endswith("weight"):
                noise = 0.5 * noise + 1
            tensor.copy_(noise if name.endswith("var") else 0.6 * noise)


def outputs(net: nn.Module, state: dict[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """All that a network returns with some state, in a row."""
    with torch.no_grad():
        found = counted(functional_call(net, state, tuple(inputs)))
    return torch.cat([item.flatten() for item in found.values()])


def check(form: Form, seed: int = 0) -> Checked:
    """Compare the groups of a network with what it computes.

    Args:
        form: the network.
        seed: of its parameters.
    """
    net = form.build()
    fill(net, seed)
    symmetry = fxrebasin.analyze(net, net.batch(2, 0), symmetry="all")
    error = 0.0
    if symmetry.groups is not None:
        held = (*net.named_parameters(), *net.named_buffers())
        state = {key: value.detach().clone() for key, value in held}
        moved = acted(state, symmetry.groups, symmetry.classes, elements_of(symmetry))
        inputs = net.batch(20, 3)
        before, after = outputs(net, state, inputs), outputs(net, moved, inputs)
        error = float((before - after).abs().max() / before.abs().max())
    said = symmetry.dimension()
    size = sum(parameter.numel() for parameter in net.parameters())
    if size > PARAMETERS_AT_MOST:
        return Checked(form, Verdict.OTHER if error > _CLOSE else Verdict.LARGE, said, None, error)
    each = net(*net.batch(1, 0)).numel()
    known = nullity(net, net.batch(2 * size // each + 20, 1))
    if error > _CLOSE:
        verdict = Verdict.OTHER
    elif said == known:
        verdict = Verdict.WELL
    else:
        verdict = Verdict.MORE if said > known else Verdict.LESS
    return Checked(form, verdict, said, known, error)
