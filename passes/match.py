"""Matching: find the permutation that brings a model's weights closest to those of a reference."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from rich.progress import Progress, TaskID

from fxrebasin._gather import storage_identity
from fxrebasin.console import progress_bar
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.indexing import misfits
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.permutation import Permutation
from fxrebasin.solvers.pairs import blocks_of, view_of_reals
from fxrebasin.solvers.weight import WeightProblem, solve_weights

_STARTS = {
    "auto": ("evidence",),
    "both": ("evidence", "identity"),
    "evidence": ("evidence",),
    "identity": ("identity",),
}
# On small models one start may beat the other by chance, and a second one takes no time.
_SMALL = 2**20
# A progress bar that flashes by is only in the way.
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
    """

    permutation: Permutation
    objective_before: float
    objective_after: float
    distance_before: float
    distance_after: float
    sweeps: int
    seconds: float


class Method(Protocol):
    """A matching method; further keyword arguments are its options."""

    def __call__(
        self,
        symmetry: HasSymmetry,
        state_b: Mapping[str, torch.Tensor],
        state_a: Mapping[str, torch.Tensor],
        *,
        seed: int = 0,
        parameters: Collection[str] | None = None,
    ) -> MatchResult:
        """Find a permutation of `state_b` towards `state_a`."""


def match_weights(
    symmetry: HasSymmetry,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    *,
    seed: int = 0,
    parameters: Collection[str] | None = None,
    match_buffers: bool = False,
    max_sweeps: int = 100,
    init: str = "auto",
    classes: Collection[str] | None = None,
) -> MatchResult:
    """Weight matching: maximise the sum of inner products of the weights (arXiv:2209.04836).

    Coordinate descent over the classes, each solved exactly as a linear assignment; classes within
    others (units within heads, channels within groups) are solved together with the outer one.
    Computes in float32, or float64 for float64 tensors. On Ctrl-C the best permutation so far is
    returned, with a warning.

    Args:
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference, of the same shapes.
        seed: for the order in which classes are visited.
        parameters: names of the state tensors that are parameters; all tensors when left out.
        match_buffers: compare buffers (running statistics) as well.
        max_sweeps: over the classes, at least 1.
        init: `"evidence"` decides class after class, each by what is decided already, the clearest
            first; `"identity"` starts from the present order; `"both"` takes the better of the
            two, and leaves the second out where it could not be much better; `"auto"` is both for
            small models (up to a million weights), otherwise evidence, which has been ahead on
            every large model tried.
        classes: names of the only classes that may move; all when left out.

    Raises:
        InputError: an option cannot be used, or a tensor has no values (it is on the meta device)
            or values that are not finite.
        ArchitectureMismatchError: tensors are missing or differ in shape.
    """
    began = time.perf_counter()
    _check_options(symmetry, max_sweeps, init, classes)
    _check_states(symmetry.layout, state_b, state_a)
    compared = _compared(state_b, state_a, None if match_buffers else parameters)
    names = [name for name in symmetry.layout if name in compared]
    free = [c.name for c in symmetry.classes if classes is None or c.name in classes]
    before = _measures(compared, state_a, state_b)
    problem = WeightProblem(symmetry.classes, symmetry.layout, state_a, state_b, names, free)
    if init == "auto" and sum(state_b[name].numel() for name in names) <= _SMALL:
        init = "both"
    with closing(_LateBar()) as report:
        solution = solve_weights(problem, seed, max_sweeps, _STARTS[init], report)
    permutation = Permutation(symmetry.classes, solution.arrays, symmetry.layout)
    after = _measures(compared, state_a, state_b, permutation)
    return MatchResult(
        permutation,
        objective_before=before[0],
        objective_after=after[0],
        distance_before=before[1],
        distance_after=after[1],
        sweeps=solution.sweeps,
        seconds=time.perf_counter() - began,
    )


METHODS: Mapping[str, Method] = {"weight": match_weights}


def check_method(method: str, options: Mapping[str, object]) -> None:
    """Refuse a method or options that do not exist, before any work.

    Raises:
        InputError: naming those that do exist.
    """
    if method not in METHODS:
        raise InputError(f"no method {method!r}; there are: {', '.join(sorted(METHODS))}")
    given = set(inspect.signature(Method.__call__).parameters)
    parameters = inspect.signature(METHODS[method]).parameters
    allowed = [name for name in parameters if name not in given]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise InputError(
            f"method {method!r} has no option {', '.join(map(repr, unknown))}; "
            f"its options are: {', '.join(allowed)}"
        )


def match_states(
    symmetry: HasSymmetry,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    *,
    method: str = "weight",
    seed: int = 0,
    parameters: Collection[str] | None = None,
    **options: object,
) -> MatchResult:
    """Match with one of `METHODS`.

    Args:
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference.
        method: a key of `METHODS`.
        seed: the same seed gives the same result.
        parameters: names of the state tensors that are parameters; all tensors when left out.
        **options: of the method.

    Raises:
        InputError: there is no such method or option, or what the method raises.
        ArchitectureMismatchError: tensors are missing or differ in shape.
    """
    check_method(method, options)
    function = METHODS[method]
    return function(symmetry, state_b, state_a, seed=seed, parameters=parameters, **options)


def _check_options(
    symmetry: HasSymmetry, max_sweeps: int, init: str, classes: Collection[str] | None
) -> None:
    if type(max_sweeps) is not int or max_sweeps < 1:
        raise InputError(f"max_sweeps is {max_sweeps!r}; it has to be a whole number from 1 on")
    if init not in _STARTS:
        raise InputError(f"no start {init!r}; init is one of: {', '.join(_STARTS)}")
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

    One tensor is permuted at a time, and the sums are in float64.
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
            product += float((x * y).sum(dtype=torch.float64))
            square += float((x - y).square().sum(dtype=torch.float64))
        if not math.isfinite(product + square):
            raise InputError(f"{name} holds values that are not finite, or too large to compare")
    return product, square**0.5


class _LateBar:
    """A progress bar on standard error that appears only when there is time to read it."""

    def __init__(self) -> None:
        self._due = time.perf_counter() + _PATIENCE_SECONDS
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.perf_counter() < self._due:
            return
        if self._bar is None:
            self._bar = progress_bar()
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(f"matching from {stage}", total=total)
        self._bar.update(self._tasks[stage], completed=done)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
