"""Two opened checkpoints of one model: what may move, in which order they pass, what is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxrebasin.analysis import symmetry_of
from fxrebasin.choices import choices_for
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.facts import bytes_text
from fxrebasin.indexing import misfits
from fxrebasin.layout import names_in
from fxrebasin.models.checks import check_finite, check_usable
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.passes.match.problem import notes_on_ignored
from fxrebasin.permutation import Permutation
from fxrebasin.ranks import ALONE, Ranks
from fxrebasin.reliance import contradictions
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.reading import Reading
from fxrebasin.storage.reference import ignored_in
from fxrebasin.streaming.fetching import Within
from fxrebasin.streaming.matching import FileMatch
from fxrebasin.streaming.opening import Opened
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import Schedule, make_schedule
from fxrebasin.streaming.states import Found, Progress
from fxrebasin.streaming.stored import Stored
from fxrebasin.streaming.unfinished import Unfinished
from fxrebasin.symmetry import Symmetry
from fxrebasin.wording import listed, spoken

_SHOWN = 8
_MOST_SWEEPS = 100


@dataclass(frozen=True)
class Plan:
    """A match that can be made.

    Args:
        symmetry: of the model with the constants of the checkpoint that moves.
        problem: what is known of the tensors.
        schedule: of a sweep.
        ignored: names of tensors that are not compared.
        notes: what is not compared, in words.
    """

    symmetry: Symmetry
    problem: FileProblem
    schedule: Schedule
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def plan_match(
    module: nn.Module,
    inputs: tuple[Any, Mapping[str, Any] | None],
    choices: Mapping[str, Any],
    pair: tuple[Opened, Opened],
    reading: Reading,
    most: int | None,
) -> Plan:
    """Find what may move, and the order in which tensors are read.

    Args:
        module: with parameters on the meta device; its buffers become those of the checkpoint that
            moves.
        inputs: positional and keyword inputs.
        choices: `state_buffers` and `outputs`, as `analyze` takes them.
        pair: the reference, and the checkpoint that moves.
        reading: what may differ in them.
        most: bytes of memory that there are; None for the least that is needed.

    Raises:
        ArchitectureMismatchError: tensors that are compared differ in shape.
        InputError: the model or its inputs cannot be used, or the memory is too little.
    """
    reference, model = pair
    check_usable(module, needs_weights=False)
    lay_buffers(module, model)
    chosen = choices_for(module, **choices)
    args, kwargs = normalise_inputs(module, *inputs, check=False)
    symmetry = symmetry_of(module, args, kwargs, chosen)
    ignored = ignored_in(module, reading.ignore)
    sides = _sides(module, symmetry, reference, model, ignored)
    unseen = names_in(symmetry.layout, ignored) - names_in(symmetry.layout, sides)
    free = tuple(c.name for c in symmetry.classes if c.name not in unseen)
    problem = FileProblem(symmetry.classes, symmetry.layout, sides, free)
    schedule = make_schedule(problem, most)
    if most is not None and schedule.peak > most:
        raise InputError(
            f"about {bytes_text(schedule.peak)} of memory are needed, of which "
            f"{bytes_text(schedule.bytes_largest)} are for the tensors of the largest class in "
            f"both checkpoints and {bytes_text(schedule.bytes_matrix)} for its matrix of gains; "
            f"{bytes_text(most)} are allowed. Allow more with "
            f"{spoken('max_memory=', '--max-memory')}"
        )
    return Plan(symmetry, problem, schedule, ignored, notes_on_ignored(ignored, unseen))


def plan_again(plan: Plan, forms: Mapping[str, Stored], most: int | None) -> Plan:
    """The plan of a match with another reference.

    Args:
        plan: of a match with the same model.
        forms: of the tensors of the reference, which may be fewer.
        most: bytes of memory that there are; None for the least that is needed.
    """
    every = plan.problem.sides.items()
    sides = {name: (forms[name], model) for name, (_, model) in every if name in forms}
    problem = replace(plan.problem, sides=sides)
    return replace(plan, problem=problem, schedule=make_schedule(problem, most))


def lay_buffers(module: nn.Module, opened: Opened) -> None:
    """Give a module the buffers of a checkpoint, which decide about symmetries.

    Args:
        module: with parameters on the meta device.
        opened: the checkpoint.

    Raises:
        InputError: one holds values that are not finite.
    """
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    own = module.state_dict()
    names = [
        name
        for name, stored in opened.stored.items()
        if name not in parameters and tuple(own[name].shape) == stored.shape
    ]
    buffers = {name: opened.read(name).to(own[name].dtype) for name in names}
    check_finite({}, buffers)
    # Some are without values as well, if they were made of parameters.
    module.load_state_dict(buffers, strict=False, assign=True)


def _sides(
    module: nn.Module,
    symmetry: Symmetry,
    reference: Opened,
    model: Opened,
    ignored: Sequence[str],
) -> dict[str, Any]:
    """The parameters that are compared, in the order of the model, tied ones once."""
    faults = []
    sides = {}
    seen = set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        a, b = reference.stored.get(name), model.stored.get(name)
        if name in ignored or a is None or b is None or id(parameter) in seen:
            continue
        if a.shape != b.shape:
            faults.append(f"{name}: model {b.shape}, reference {a.shape}")
            continue
        faults += [f"{name}: {fault}" for fault in misfits(symmetry.layout.get(name, ()), b.shape)]
        if all(side.dtype.is_floating_point or side.dtype.is_complex for side in (a, b)):
            seen.add(id(parameter))
            sides[name] = (a, b)
    lost = [n for n in symmetry.layout if n not in ignored and n not in model.stored]
    if lost:
        faults.append(f"missing in {model.path}: {listed(lost, _SHOWN)}")
    if faults:
        raise ArchitectureMismatchError(
            "model, reference and symmetry do not fit each other:\n  " + "\n  ".join(faults)
        )
    return sides


def match_files(
    plan: Plan,
    pair: tuple[Opened, Opened],
    seconds: dict[str, float],
    run: Unfinished | None = None,
    task: str = "0",
    most_sweeps: int = _MOST_SWEEPS,
    ranks: Ranks = ALONE,
    within: Within | None = None,
) -> RebasinReport:
    """Match two checkpoints that pass through memory.

    Args:
        plan: of the match.
        pair: the reference, and the checkpoint that moves.
        seconds: of earlier stages; that of this one is added.
        run: keeps how far the match is, and knows how far it was.
        task: which of the run's matches this is.
        most_sweeps: the most sweeps to make.
        ranks: the processes that share the work; all of them find the same.
        within: where the reference is a mean that the model is part of.

    Raises:
        InputError: a tensor holds values that are not finite.
        RankLostError: another process has ended.
    """
    began = time.perf_counter()
    found, since = _common(None if run is None else run.load(task), ranks)
    if found is None:
        keep: Callable[[Any], None] = (
            (lambda state: None) if run is None else (lambda state: run.keep(task, state))
        )
        read = pair[0].read, pair[1].read
        match = FileMatch(plan.problem, plan.schedule, *read, keep, since, ranks, within)
        found = match.run(most_sweeps)
        if run is not None:
            run.keep(task, found)
    seconds["match"] = time.perf_counter() - began
    return _reported(plan, pair, found, seconds)


def _common(kept: Progress | Found | None, ranks: Ranks) -> tuple[Found | None, Progress | None]:
    """What was kept by an earlier run, as far as all processes can go on with it.

    They go on only from between the same two exchanges, and begin again otherwise.
    """
    found = next((k for k in ranks.every(kept) if isinstance(k, Found)), None)
    if found is not None or not isinstance(kept, Progress):
        place = None
    else:
        place = kept.sweep, kept.meetings
    places = ranks.every(place)
    return found, kept if isinstance(kept, Progress) and len({*places}) == 1 else None


def _reported(
    plan: Plan, pair: tuple[Opened, Opened], found: Found, seconds: Mapping[str, float]
) -> RebasinReport:
    symmetry = plan.symmetry
    permutation = Permutation(symmetry.classes, found.arrays, symmetry.layout)
    notes = [*plan.notes, *symmetry.notes, *_on_constants(symmetry, pair[0])]
    if not found.settled:
        notes.append(f"Matching was stopped after {found.sweeps} sweeps, before it had settled.")
    return RebasinReport(
        method="weight",
        objective_before=found.objective_before,
        objective_after=found.objective_after,
        distance_before=found.distance_before,
        distance_after=found.distance_after,
        sweeps=found.sweeps,
        seconds=dict(seconds),
        tracer=None,
        notes=tuple(notes),
        equivalence=None,
        certificate=permutation.relying_on(symmetry.relies_on, symmetry.found_with),
        log10_order=symmetry.log10_order(),
        unknown_operators=symmetry.unknown_operators,
        ignored=plan.ignored,
    )


def _on_constants(symmetry: Symmetry, reference: Opened) -> list[str]:
    """What constants of the reference differ from those that the symmetry relies on."""
    names = [n for n in symmetry.relies_on if n in reference.stored]
    faults = contradictions(symmetry.relies_on, {name: reference.read(name) for name in names})
    if not faults:
        return []
    return [
        "The constants of the reference differ from the model's, and the permutation holds for "
        f"the model alone: {'; '.join(faults)}."
    ]


def shapes_of(opened: Opened) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint without values, by name of the model.

    Args:
        opened: the checkpoint.
    """
    return {name: stored.on_meta() for name, stored in opened.stored.items()}
