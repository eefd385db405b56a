"""Holds what the analysis says of a program against the program."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import compress

import numpy as np
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.errors import FxRebasinError
from fxrebasin.indexing import identity_arrays
from fxrebasin.permutation import Permutation
from fxrebasin.running.messages import attempt
from fxrebasin.symmetry import Symmetry
from tests.fuzz import brute
from tests.fuzz.outputs import difference, tensors
from tests.fuzz.program import Built, float64, integers

TOLERANCE = 1e-9
SEEDS = (0, 1)
BATCHES = (3, 5)
_NUDGE, _NUDGES = 1e-13, 16
LOUDEST = 1e4
"""Outputs beyond this are not compared."""


class Kind(Enum):
    """What can be wrong."""

    WRONG = "a permutation of the group changes the outputs"
    CRASH = "an exception"
    BITS = "the inverse does not restore the bits"
    PLANTED = "what match finds for a permuted copy changes the outputs"
    CONSTANTS = "a state with other buffers is permuted, and computes something else"
    ORDER = "the order does not divide the number of permutations that change nothing"


@dataclass(frozen=True)
class Fault:
    """What is wrong with the analysis of a program.

    Attributes:
        kind: what.
        where: of an exception, its type and place, for telling causes apart.
        detail: in words.
    """

    kind: Kind
    where: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came out of a check.

    Attributes:
        fault: what is wrong, if anything.
        refusal: the first line of the error that the model was refused with.
        symmetry: what was found.
        lost: how many times as large the group is, by trying everything; 1 where that is unknown.
    """

    fault: Fault | None = None
    refusal: str = ""
    symmetry: Symmetry | None = None
    lost: int = 1


def check(built: Built, planted: bool = False, every: bool = False) -> Verdict:
    """Analyse a program and try what was found on it.

    Args:
        built: the program.
        planted: whether to match a permuted copy, too.
        every: whether to compare the order with the number of permutations that change nothing.
    """
    with float64():
        net, x = built.make()
        if not _calm(net, x):
            return Verdict(refusal="its outputs are not finite, or too large")
        found: list[Symmetry] = []
        error = attempt(lambda: found.append(fxrebasin.analyze(net, x)))
        if error is not None:
            return _refused(error)
        return _tried(net, x, found[0], planted, every)


def _tried(net: nn.Module, x: Tensor, symmetry: Symmetry, planted: bool, every: bool) -> Verdict:
    """Random elements, a planted one, and all that there are."""
    faults: list[Fault | None] = []
    lost = [1]

    def run() -> None:
        faults.append(_with_elements(net, x, symmetry))
        if any(True for _ in net.buffers()) and faults == [None]:
            faults.append(_with_other_constants(net, x, symmetry))
        alike = planted and symmetry.classes and _same_group(net, torch.cat([x, x]), symmetry)
        if alike and not any(faults):
            faults.append(_planted(net, x, symmetry))
        if every and not any(faults):
            fault, lost[0] = counted(net, x, symmetry)
            faults.append(fault)

    error = attempt(run)
    fault = next(filter(None, faults), None) if error is None else _crash(error)
    compared = fault is not None and fault.kind is not Kind.CRASH
    if compared and any(decided_by_rounding(net, item) for item in (x, *_inputs(net, x))):
        return Verdict(refusal="rounding decides its outputs", symmetry=symmetry)
    return Verdict(fault, symmetry=symmetry, lost=lost[0])


def decided_by_rounding(net: nn.Module, x: Tensor) -> bool:
    """Whether weights that differ by a few roundings give other outputs.

    Which of two rows has the largest sum, of the same units in two orders, is such an output.
    """
    with torch.no_grad():
        wanted = tensors(net(x))
        for seed in range(_NUDGES):
            generator = torch.Generator().manual_seed(seed)
            near = copy.deepcopy(net)
            for weight in near.parameters():
                drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
                weight.mul_((1 + _NUDGE * (drawn - 0.5)).to(weight.dtype))
            if not difference(wanted, tensors(near(x))) <= TOLERANCE:
                return True
    return False


def _calm(net: nn.Module, x: Tensor) -> bool:
    """Whether a program runs, and gives numbers that can be compared."""
    found: list[Tensor] = []
    if attempt(lambda: found.extend(tensors(net(x)))) is not None:
        return False
    return all(bool(t.isfinite().all()) and float(t.abs().max()) < LOUDEST for t in found)


def _refused(error: Exception) -> Verdict:
    """An error of the family is a refusal, unless it was raised for an exception in our code."""
    cause = error.__cause__
    if not isinstance(error, FxRebasinError):
        return Verdict(_crash(error))
    if isinstance(error, fxrebasin.TraceError) and cause is not None:
        return Verdict(_crash(cause))
    return Verdict(refusal=f"{type(error).__name__}: {str(error).splitlines()[0][:150]}")


def _crash(error: BaseException) -> Fault:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/fuzz/" not in f.filename and "/torch/" not in f.filename]
    place = f" in {ours[-1].name}" if ours else ""
    text = " ".join(str(error).split())[:200]
    return Fault(Kind.CRASH, f"{type(error).__name__}{place}", f"{type(error).__name__}: {text}")


def _with_elements(net: nn.Module, x: Tensor, symmetry: Symmetry) -> Fault | None:
    """Random elements of the group and one that moves everything, on fresh inputs."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    inputs = _inputs(net, x)
    expected = [tensors(net(item)) for item in inputs]
    for element in [*map(symmetry.random, SEEDS), rolled(symmetry)] if symmetry.classes else []:
        moved = element.permute_state_dict(state)
        if not _same_bits(element.inverse().permute_state_dict(moved), state):
            return Fault(Kind.BITS)
        fault = _changed(net, moved, inputs, expected)
        if fault is not None:
            alike = [_same_group(net, item, symmetry) for item in inputs]
            inputs, expected = list(compress(inputs, alike)), list(compress(expected, alike))
            fault = _changed(net, moved, inputs, expected)
        if fault is not None:
            return fault
    return None


def _with_other_constants(net: nn.Module, x: Tensor, symmetry: Symmetry) -> Fault | None:
    """A state with other buffers is refused, or permuted without a change of the outputs."""
    generator = torch.Generator().manual_seed(17)
    other = copy.deepcopy(net)
    for buffer in other.buffers():
        if buffer.is_floating_point():
            buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype))
    if not symmetry.classes or not _calm(other, x):
        return None
    for element in (symmetry.random(SEEDS[0]), rolled(symmetry)):
        try:
            moved = element.permute_state_dict(other.state_dict())
        except fxrebasin.ArchitectureMismatchError:
            return None
        fault = _changed(other, moved, [x], [tensors(other(x))])
        if fault is not None:
            return replace(fault, kind=Kind.CONSTANTS)
    return None


def _same_group(net: nn.Module, x: Tensor, symmetry: Symmetry) -> bool:
    """Whether an input of another size has the group of the example.

    Where not, what was found is true of the size of the example: all windows over twice the rows
    may hold the same rows at both ends.
    """
    if not _calm(net, x):  # and so nothing takes it for an input
        return True
    other = fxrebasin.analyze(net, x)
    return other.classes == symmetry.classes and other.pins.keys() == symmetry.pins.keys()


def _changed(
    net: nn.Module,
    moved: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    expected: Sequence[list[Tensor]],
) -> Fault | None:
    other = copy.deepcopy(net)
    other.load_state_dict(moved)
    for item, wanted in zip(inputs, expected, strict=True):
        change = difference(wanted, tensors(other(item)))
        if not change <= TOLERANCE:
            shape = tuple(item.shape)
            return Fault(Kind.WRONG, "", f"relative change {change:.1e}, input of shape {shape}")
    return None


def rolled(symmetry: Symmetry) -> Permutation:
    """The element that moves every unit of every class by one."""
    identity = identity_arrays(symmetry.classes)
    arrays = {name: np.roll(array, 1, -1) for name, array in identity.items()}
    return Permutation(symmetry.classes, arrays, symmetry.layout)


def _inputs(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Fresh inputs, of another batch size too if the program takes them."""
    generator = torch.Generator().manual_seed(99)
    found = []
    for batch in BATCHES:
        shape = (batch, *x.shape[1:])
        if x.is_floating_point():
            item = torch.randn(shape, generator=generator, dtype=x.dtype)
        else:
            item = integers(generator, int(x.max()) + 1, *shape)
        if _calm(net, item):
            found.append(item)
    return found


def _planted(net: nn.Module, x: Tensor, symmetry: Symmetry) -> Fault | None:
    """A permuted copy is matched back, or by something that changes nothing at least."""
    other = copy.deepcopy(net)
    other.load_state_dict(symmetry.random(5).permute_state_dict(net.state_dict()))
    found = fxrebasin.match(other, ref=net, example_inputs=x)
    back = found.permute_state_dict(other.state_dict())
    if _same_bits(back, net.state_dict()):
        return None
    fault = _changed(net, back, [x], [tensors(net(x))])
    return fault and Fault(Kind.PLANTED, "", fault.detail)


def counted(net: nn.Module, x: Tensor, symmetry: Symmetry) -> tuple[Fault | None, int]:
    """The order against the number of permutations that change nothing, and their quotient."""
    found = brute.found_order(symmetry)
    number = None
    if found is not None:
        number = brute.count(net, x, brute.read_tensors(net, x, symmetry))
    if found is None or number is None:
        return None, 1
    if number % found:
        return Fault(Kind.ORDER, "", f"order {found}; {number} permutations change nothing"), 1
    return None, number // found


def _same_bits(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """All state is float64, and so are its bits."""
    return all(
        torch.equal(one[name].contiguous().view(torch.int64), value.contiguous().view(torch.int64))
        for name, value in two.items()
    )
