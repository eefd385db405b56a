"""What every matching method is given: one problem, which was checked when it was posed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn

from fxrebasin.counted import counted_state
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.gather import storage_identity
from fxrebasin.indexing import Arrays, misfits
from fxrebasin.layout import Layout, PermutationClass, names_in
from fxrebasin.passes.match.closeness import Closeness, closeness
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.permutation import Permutation
from fxrebasin.solvers.weight_problem import WeightProblem
from fxrebasin.wording import listed

_LISTED = 8


class HasSymmetry(Protocol):
    """What matching needs to know about a model: its classes and where their units are."""

    @property
    def classes(self) -> tuple[PermutationClass, ...]:
        """The permutation classes."""

    @property
    def layout(self) -> Layout:
        """Where their units are, by state tensor name."""


@dataclass(frozen=True, eq=False)
class MatchingProblem:
    """A model to be brought close to a reference.

    Args:
        symmetry: classes and layout of the model.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference, of the same shapes.
        parameters: names of the tensors that are compared; all when left out.
        model: what is run by the methods that look at data; its weights do not matter.
        seed: the same seed gives the same result.
        classes: names of the only classes that may move; all when left out.
        ignored: names of state tensors of the model that are not compared. The reference may have
            others in their place, or none.
        reference: the reference as a module, if it is one, for the methods that run it.

    Attributes:
        compared: names of the tensors that hold numbers to compare, tied ones once.
        free: names of the classes that may move: not those that ignored tensors alone hold.
        notes: what was not compared, in words.
        before: how close model and reference are as they are.
        posed: when this was made, on the clock of `time.perf_counter`.

    Raises:
        InputError: `classes` names what the model does not have, or a tensor has no values or
            values that are not finite.
        ArchitectureMismatchError: tensors are missing or differ in shape.
    """

    symmetry: HasSymmetry
    state_b: Mapping[str, torch.Tensor]
    state_a: Mapping[str, torch.Tensor]
    parameters: Collection[str] | None = None
    model: nn.Module | None = None
    seed: int = 0
    classes: Collection[str] | None = None
    ignored: Collection[str] = ()
    reference: nn.Module | None = None
    compared: tuple[str, ...] = field(init=False)
    free: tuple[str, ...] = field(init=False)
    notes: tuple[str, ...] = field(init=False)
    before: Closeness = field(init=False)
    posed: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "posed", time.perf_counter())
        _check_classes(self.symmetry, self.classes)
        _check_states(self.symmetry.layout, self.state_b, self.state_a, self.ignored)
        compared = _compared(self.state_b, self.common_a, self.parameters)
        held = names_in(self.symmetry.layout, compared)
        unseen = names_in(self.symmetry.layout, self.ignored) - held
        names = [c.name for c in self.symmetry.classes if c.name not in unseen]
        free = tuple(n for n in names if self.classes is None or n in self.classes)
        object.__setattr__(self, "free", free)
        object.__setattr__(self, "compared", compared)
        object.__setattr__(self, "notes", notes_on_ignored(self.ignored, unseen))
        before = closeness(compared, self._counted(self.state_a), self._counted(self.state_b))
        object.__setattr__(self, "before", before)

    @property
    def common_a(self) -> Mapping[str, torch.Tensor]:
        """The tensors of the reference that are compared: those that both models have."""
        ignored = set(self.ignored)
        return {name: t for name, t in self.state_a.items() if name not in ignored}

    @property
    def weights(self) -> WeightProblem:
        """What the solvers of weight matching work on."""
        compared = set(self.compared)
        return WeightProblem(
            self.symmetry.classes,
            self.symmetry.layout,
            {**self.common_a, **self._counted(self.common_a)},
            {**self.state_b, **self._counted(self.state_b)},
            [name for name in self.symmetry.layout if name in compared],
            self.free,
        )

    def _counted(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What counts of the tensors that are compared."""
        names = (name for name in self.compared if name in state)
        return counted_state({name: state[name] for name in names}, self.symmetry.layout)

    def with_buffers(self) -> MatchingProblem:
        """The same, with buffers (running statistics) compared as well."""
        return replace(self, parameters=None)

    def permutation(self, arrays: Arrays) -> Permutation:
        """An element of the group.

        Args:
            arrays: int64 by class name.
        """
        return Permutation(self.symmetry.classes, arrays, self.symmetry.layout)

    def permuted(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        """The state of the model with its units in another order.

        Args:
            arrays: int64 by class name.
        """
        return self.permutation(arrays).permute_state_dict(self.state_b)

    def result(
        self, permutation: Permutation, sweeps: int, notes: tuple[str, ...] = ()
    ) -> MatchResult:
        """What a method returns: its permutation, with the figures.

        Args:
            permutation: what the method found.
            sweeps: number of sweeps, steps or epochs that it took.
            notes: for the report.
        """
        a, b = self._counted(self.state_a), self._counted(self.state_b)
        after = closeness(self.compared, a, b, permutation)
        return MatchResult(
            permutation,
            objective_before=self.before.objective,
            objective_after=after.objective,
            distance_before=self.before.distance,
            distance_after=after.distance,
            sweeps=sweeps,
            seconds=time.perf_counter() - self.posed,
            notes=notes,
        )


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


def notes_on_ignored(ignored: Collection[str], unseen: Collection[str]) -> tuple[str, ...]:
    """What was not compared, in words.

    Args:
        ignored: names of tensors, as they were asked for.
        unseen: names of the classes that these alone hold.
    """
    notes = []
    if ignored:
        names = listed(list(ignored), _LISTED)
        notes.append(f"Tensors that were not compared with the reference: {names}.")
    if unseen:
        names = listed(sorted(unseen), _LISTED)
        notes.append(f"Classes that only such tensors have, which were left as they are: {names}.")
    return tuple(notes)


def _check_states(
    layout: Layout,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    ignored: Collection[str],
) -> None:
    """Refuse states that do not fit each other where the layout needs them."""
    faults = []
    for name in (name for name in layout if name not in set(ignored)):
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
) -> tuple[str, ...]:
    """Names of the tensors that hold numbers to compare, tied ones once."""
    wanted = None if parameters is None else set(parameters)
    seen = set()
    names = []
    for name, b in state_b.items():
        a = state_a.get(name)
        if a is None or a.shape != b.shape or a.is_meta or b.is_meta:
            continue
        if not (_is_number(a) and _is_number(b)) or (wanted is not None and name not in wanted):
            continue
        tie = storage_identity(b)
        if tie not in seen:
            seen.add(tie)
            names.append(name)
    return tuple(names)


def _is_number(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
