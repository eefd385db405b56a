"""What all matching methods share: the checks before, the figures after, and the progress bar."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from rich.progress import Progress, TaskID

from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.gather import storage_identity
from fxrebasin.indexing import Arrays, misfits
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.permutation import Permutation
from fxrebasin.solvers.pairs import blocks_of, inner, view_of_reals
from fxrebasin.solvers.weight import WeightProblem
from fxrebasin.terminal import progress_bar

# A progress bar that only flashes by is a nuisance.
_PATIENCE_SECONDS = 2.0


class HasSymmetry(Protocol):
    """What matching needs to know about a model: its classes and where their units are."""

    @property
    def classes(self) -> tuple[PermutationClass, ...]:
        """The permutation classes."""

    @property
    def layout(self) -> Layout:
        """Where their units are, by state tensor name."""


@dataclass(frozen=True)
class MatchResult:
    """A permutation and what it achieves.

    Args:
        permutation: brings the model towards the reference.
        objective_before: sum over the compared tensors of the inner product of both models.
        objective_after: the same with the permuted model.
        distance_before: Euclidean distance of the compared tensors of both models.
        distance_after: the same with the permuted model.
        sweeps: over the classes until nothing changed.
        seconds: that matching took.
        notes: what a user of the permutation should know, in words.
    """

    permutation: Permutation
    objective_before: float
    objective_after: float
    distance_before: float
    distance_after: float
    sweeps: int
    seconds: float
    notes: tuple[str, ...] = ()


class Matching:
    """The start and the end of every method: states that were checked, and the figures of both.

    Args:
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference, of the same shapes.
        parameters: names of the tensors that are compared; all when left out.
        classes: names of the only classes that may move; all when left out.

    Raises:
        InputError: `classes` names what the model does not have, or a tensor has no values or
            values that are not finite.
        ArchitectureMismatchError: tensors are missing or differ in shape.
    """

    def __init__(
        self,
        symmetry: HasSymmetry,
        state_b: Mapping[str, torch.Tensor],
        state_a: Mapping[str, torch.Tensor],
        parameters: Collection[str] | None,
        classes: Collection[str] | None,
    ) -> None:
        self._began = time.perf_counter()
        _check_classes(symmetry, classes)
        _check_states(symmetry.layout, state_b, state_a)
        self._compared = _compared(state_b, state_a, parameters)
        self.symmetry, self.state_a, self.state_b = symmetry, state_a, state_b
        self.free = [c.name for c in symmetry.classes if classes is None or c.name in classes]
        self._before = _measures(self._compared, state_a, state_b)
        self.problem = WeightProblem(
            symmetry.classes,
            symmetry.layout,
            state_a,
            state_b,
            [name for name in symmetry.layout if name in self._compared],
            self.free,
        )

    def permutation(self, arrays: Arrays) -> Permutation:
        """An element of the group.

        Args:
            arrays: int64 by class name.
        """
        return Permutation(self.symmetry.classes, arrays, self.symmetry.layout)

    def result(
        self, permutation: Permutation, sweeps: int, notes: tuple[str, ...] = ()
    ) -> MatchResult:
        """The figures of a permutation.

        Args:
            permutation: what the method found.
            sweeps: that it took.
            notes: for the report.
        """
        after = _measures(self._compared, self.state_a, self.state_b, permutation)
        return MatchResult(
            permutation,
            objective_before=self._before[0],
            objective_after=after[0],
            distance_before=self._before[1],
            distance_after=after[1],
            sweeps=sweeps,
            seconds=time.perf_counter() - self._began,
            notes=notes,
        )


@contextmanager
def interruptible() -> Iterator[None]:
    """A block that Ctrl-C ends with a warning; what it found so far has to be kept outside it."""
    try:
        yield
    except KeyboardInterrupt:
        warnings.warn("matching was interrupted: the best permutation so far is used", stacklevel=4)


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse an option that is not a whole number, or is too small.

    Args:
        name: of the option.
        value: what was given for it.
        least: that it may be.

    Raises:
        InputError: with name and value.
    """
    if type(value) is not int or value < least:
        raise InputError(f"{name} is {value!r}; it has to be a whole number of at least {least}")


def check_positive(name: str, value: object) -> None:
    """Refuse an option that is not a finite number above 0.

    Args:
        name: of the option.
        value: what was given for it.

    Raises:
        InputError: with name and value.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise InputError(f"{name} is {value!r}; it has to be a number above 0")


def _check_classes(symmetry: HasSymmetry, classes: Collection[str] | None) -> None:
    if classes is None:
        return
    if isinstance(classes, str):
        raise InputError(f"classes is the text {classes!r}; pass a list of class names")
    names = {c.name for c in symmetry.classes}
    unknown = sorted(name for name in classes if name not in names)
    if unknown:
        raise InputError(
            f"classes names {', '.join(map(repr, unknown))}, which this model does not have"
        )


def _check_states(
    layout: Layout, state_b: Mapping[str, torch.Tensor], state_a: Mapping[str, torch.Tensor]
) -> None:
    """Refuse states that do not fit each other where the layout needs them."""
    faults = []
    for name in layout:
        a, b = state_a.get(name), state_b.get(name)
        if a is None or b is None:
            faults.append(f"{name}: missing in the {'reference' if a is None else 'model'}")
        elif a.shape != b.shape:
            faults.append(f"{name}: model {tuple(b.shape)}, reference {tuple(a.shape)}")
        elif a.is_meta or b.is_meta:
            raise InputError(f"{name} is on the meta device and has no values; load weights first")
        else:
            faults += [f"{name}: {fault}" for fault in misfits(layout[name], b.shape)]
    if faults:
        raise ArchitectureMismatchError(
            "model, reference and symmetry do not fit each other:\n  " + "\n  ".join(faults)
        )


def _compared(
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    parameters: Collection[str] | None,
) -> dict[str, None]:
    """Names of the tensors that hold numbers to compare, tied ones once."""
    seen = set()
    names: dict[str, None] = {}
    for name, b in state_b.items():
        a = state_a.get(name)
        if a is None or a.shape != b.shape or a.is_meta or b.is_meta:
            continue
        if not (_is_number(a) and _is_number(b)) or (
            parameters is not None and name not in parameters
        ):
            continue
        tie = storage_identity(b)
        if tie not in seen:
            seen.add(tie)
            names[name] = None
    return names


def _is_number(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _measures(
    names: Collection[str],
    state_a: Mapping[str, torch.Tensor],
    state_b: Mapping[str, torch.Tensor],
    permutation: Permutation | None = None,
) -> tuple[float, float]:
    """Inner product and Euclidean distance of the reference and the (permuted) model.

    One tensor is permuted at a time, and long sums are in float64.
    """
    product = square = 0.0
    for name in names:
        moved = state_b[name]
        if permutation is not None:
            moved = permutation.permute_tensor(name, moved)
        a, b = (view_of_reals(side.detach()).reshape(-1) for side in (state_a[name], moved))
        dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
        for x, y in zip(blocks_of(a), blocks_of(b), strict=True):
            x, y = x.to(dtype), y.to(x.device, dtype)
            product += inner(x, y)
            difference = x - y
            square += inner(difference, difference)
        if not math.isfinite(product + square):
            raise InputError(f"{name} holds values that are not finite, or too large to compare")
    return product, square**0.5


class LateBar:
    """A progress bar on standard error that appears only when there is time to read it.

    Example:
        >>> from contextlib import closing
        >>> with closing(LateBar()) as report:
        ...     report("matching", 1, 2)
    """

    def __init__(self) -> None:
        self._due = time.perf_counter() + _PATIENCE_SECONDS
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show how far a stage is.

        Args:
            stage: a few words.
            done: steps of it that are done.
            total: steps that it has, None if that is not known.
        """
        if time.perf_counter() < self._due:
            return
        if self._bar is None:
            self._bar = progress_bar()
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._tasks[stage], completed=done)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
