"""Merging many models: align all of them, and take the mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import nn

from fxrebasin.alignment import Alignment, Certificate
from fxrebasin.analysis import symmetry_of
from fxrebasin.choices import choices_for, kinds_named
from fxrebasin.errors import InputError
from fxrebasin.kinds import Kinds
from fxrebasin.merge.alignment import AlignmentProblem, align_with_mean, to_first_order
from fxrebasin.merge.dealing import Team, agreed, check_alike, dealt, gathered, team_of
from fxrebasin.merge.heads import IgnoredFrom
from fxrebasin.merge.holding import shared_symmetry
from fxrebasin.merge.means import mean_of_models
from fxrebasin.merge.own_tensors import by_shapes, in_own_group, symmetry_alone
from fxrebasin.merge.rounds import align_in_rounds
from fxrebasin.merge.sources import Sources
from fxrebasin.merge.states import own_state
from fxrebasin.merge.universe import align_in_universe
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.options import check_count
from fxrebasin.passes.match.group_methods import MANY_METHODS, Permuted, many_over_groups
from fxrebasin.passes.match.methods import check_method
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.permutation import Permutation
from fxrebasin.proof import prove_state
from fxrebasin.ranks import Alone
from fxrebasin.running.outputs import Outputs
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.symmetry import Symmetry

Aligner: TypeAlias = Callable[..., Sequence[Permutation]]
"""From an `AlignmentProblem` to permutations of all models to one order.

Keyword arguments are its options.
"""

ALIGNERS: Mapping[str, Aligner] = {
    "cycle_consistent": align_in_universe,
    "merge_many": align_with_mean,
    "rounds": align_in_rounds,
}
_DEALT = ("mean", "rounds")
"""Methods in which no model waits for another, so that processes can share them."""


@overload
def align_many(
    models: Sequence[Any],
    method: str = "merge_many",
    *,
    symmetry: Literal["permutation"] = "permutation",
    **options: Any,
) -> tuple[Permutation, ...]: ...


@overload
def align_many(
    models: Sequence[Any], method: str = "merge_many", *, symmetry: str, **options: Any
) -> tuple[Certificate, ...]: ...


@in_own_surroundings
def align_many(
    models: Sequence[Any],
    method: str = "merge_many",
    *,
    weights: Sequence[float] | None = None,
    model: nn.Module | None = None,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
    symmetry: str = "permutation",
    group: Any = None,
    **options: Any,
) -> tuple[Certificate, ...]:
    """Permutations of many models to one order of units, which is that of the first model.

    The map from model i to model j is `permutations[j].inverse().compose(permutations[i])`, and
    such maps are consistent around every cycle. Files of weights are read one at a time, whenever
    one is needed.

    The first model is analysed, with its own state. A model without the constants which that
    analysis relied on (index tables, masks) is analysed too, and refused if it has another
    symmetry.

    Args:
        models: modules of one architecture, or paths of files of weights. Never modified.
        method: `"merge_many"` (Git Re-Basin, arXiv:2209.04836, algorithm 3) aligns each model
            with the mean of the others until no permutation changes; `"cycle_consistent"` (C2M3,
            Crisostomi et al. 2024, arXiv:2405.17897) maximises the agreement of all pairs at once
            by Frank-Wolfe, and never ends below the first; it takes some ten times as long, and
            memory for a few matrices of size n × n for every class of n units and every model;
            `"rounds"` aligns all with the first, and then several at once with the mean of the
            others, round by round, until none moves for the better: a little below the first, but
            models do not wait for each other, and several processes can share them.
        weights: how much each model counts, above 0; all the same when left out.
        model: a module of the architecture, whose weights do not matter; the first module among
            the models when left out.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name.
        seed: of the order in which models are taken; the same seed gives the same result.
        max_sweeps: over the models, at least 1.
        verify: run every model before and after in float64, and refuse permutations that change
            what a model computes; four forward passes of few rows for each model that moves.
        state_buffers: see `analyze`.
        outputs: see `analyze`.
        ignore: tensors in which the models differ, by name or pattern (`["fc.*"]`); see `match`.
            They do not count, and are permuted with their classes all the same. A model that has
            others than the architecture is analysed with its own, if it is a module that runs on
            these inputs; a class that only such tensors have stays as it is.
        symmetry: `"permutation"`; `"signed"` or `"all"` (see `analyze`) for alignments of all
            models with the first, by method `"merge_many"`: each is aligned with the first, then,
            round by round, with the mean of the others (generalised Procrustes analysis); by
            `"activation"`, which does the same with what they make of data; or by `"learned"`,
            which starts from data and descends on the loss of the mean of all and of pairs.
        group: processes that share the work, a group of torch.distributed that was initialised
            (such as `torch.distributed.group.WORLD`), for the method `"rounds"`. All of them make
            the same call and get the same result, whatever their number: models are dealt in the
            order of the list, and each process reads its own files and the first one.
        **options: of the method: `init` ("growing" or "identity") of `"merge_many"` for
            permutations, `max_steps` and `restarts` of `"cycle_consistent"`; `loader` and
            `max_batches` of `"activation"`; these and `loss`, `steps`, `rate`, `spread` and
            `start` of `"learned"`, as for `match`.

    Raises:
        ArchitectureMismatchError: the models differ in names, shapes or ties of their tensors, or
            in constants that decide which units may be permuted.
        CheckpointError: a file cannot be read.
        EquivalenceError: a permuted model, which is named, does not compute what the model does.
        InputError: a model, inputs or an option cannot be used.

    Example:
        >>> import fxrebasin
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> moved = fxrebasin.apply(net, fxrebasin.analyze(net).random(seed=0))
        >>> first, second = fxrebasin.align_many([net, moved])
        >>> first.is_identity, second.is_identity
        (True, False)
    """
    kinds = _kinds(symmetry, method, [*ALIGNERS], options)
    check_count("max_sweeps", max_sweeps)
    asked: dict[str, Any] = {
        "method": method,
        "weights": weights,
        "seed": seed,
        "max_sweeps": max_sweeps,
    }
    team = _team(group, method, asked | {"verify": verify, "ignore": ignore}, models)
    needed = _needed(models, team)
    sources = agreed(team, lambda: Sources(models, model, weights, ignore, needed=needed))
    inputs = (example_inputs, example_kwargs)
    choices = {"state_buffers": state_buffers, "outputs": outputs}
    alignment = agreed(team, lambda: _Alignment(sources, inputs, choices, verify, team))
    if kinds is not Kinds.PERMUTATION:
        return alignment.over_groups(kinds, (seed, max_sweeps), method, options)
    return alignment.for_each(alignment.found(method, (seed, max_sweeps), options))


@in_own_surroundings
def merge_many(
    models: Sequence[Any],
    method: str = "mean",
    *,
    weights: Sequence[float] | None = None,
    model: nn.Module | None = None,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    verify: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
    ignored_from: IgnoredFrom = "first",
    symmetry: str = "permutation",
    group: Any = None,
    **options: Any,
) -> nn.Module:
    """One model with the mean weights of many, whose units were aligned first.

    All floating and complex tensors are averaged, parameters and buffers, half precision in
    float32; others are those of the heaviest model. Tied tensors stay tied. The units of the
    result are in the order of the first model's. Files of weights are read one at a time.

    BatchNorm statistics of several models, averaged, describe no model: see `recalibrate`.

    Args:
        models: modules of one architecture, or paths of files of weights. Never modified.
        method: `"mean"` averages the models as they are; for the others see `align_many`.
        weights: how much each model counts, above 0; all the same when left out.
        model: gives class, dtypes, device and mode of the result; its weights do not matter. The
            first module among the models when left out.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name.
        seed: see `align_many`.
        max_sweeps: see `align_many`.
        verify: see `align_many`.
        state_buffers: see `analyze`.
        outputs: see `analyze`.
        ignore: tensors in which the models differ, by name or pattern (`["fc.*"]`), which are not
            averaged; see `match`.
        ignored_from: index of the model that gives these; `"first"` for the one that gives the
            class of the result, or if that is `model`, the first that has such tensors.
        symmetry: see `align_many`.
        group: see `align_many`; for the methods `"mean"` and `"rounds"`. The mean is handed from
            process to process, each of which adds its models.
        **options: see `align_many`; `"mean"` has none.

    Raises:
        ArchitectureMismatchError: the models differ in names, shapes or ties of their tensors, or
            in constants that decide which units may be permuted.
        CheckpointError: a file cannot be read.
        EquivalenceError: a permuted model, which is named, does not compute what the model does.
        InputError: a model, inputs or an option cannot be used.

    Example:
        >>> import fxrebasin
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> moved = fxrebasin.apply(net, fxrebasin.analyze(net).random(seed=0))
        >>> merged = fxrebasin.merge_many([net, moved], "merge_many")
        >>> torch.equal(merged[0].weight, net[0].weight)
        True
    """
    kinds = _kinds(symmetry, method, ["mean", *ALIGNERS], options)
    check_count("max_sweeps", max_sweeps)
    asked: dict[str, Any] = {
        "method": method,
        "weights": weights,
        "seed": seed,
        "max_sweeps": max_sweeps,
    }
    asked |= {"verify": verify, "ignore": ignore, "ignored_from": ignored_from}
    team = _team(group, method, asked, models)
    needed = _needed(models, team)
    sources = agreed(
        team, lambda: Sources(models, model, weights, ignore, ignored_from, needed=needed)
    )
    giver = agreed(team, sources.giver)
    if method == "mean":
        return mean_of_models(sources, lambda index: None, giver, team)
    inputs = (example_inputs, example_kwargs)
    choices = {"state_buffers": state_buffers, "outputs": outputs}
    alignment = agreed(team, lambda: _Alignment(sources, inputs, choices, verify, team))
    if kinds is not Kinds.PERMUTATION:
        moved = alignment.over_groups(kinds, (seed, max_sweeps), method, options)
        return mean_of_models(sources, lambda index: moved[index], giver, team)
    found = alignment.found(method, (seed, max_sweeps), options)
    return mean_of_models(sources, lambda index: alignment.proved(index, found[index]), giver, team)


def _team(group: Any, method: str, asked: Mapping[str, Any], models: Any) -> Team:
    """The processes that share the work, once it is known that all were asked for the same."""
    team = team_of(group)
    if group is not None and method not in _DEALT:
        raise InputError(
            f"group= is for the methods {', '.join(map(repr, _DEALT))}: in {method!r} models wait "
            "for each other"
        )
    count = len(models) if isinstance(models, Sequence) else 0
    check_alike(team, ", ".join(f"{n}={v!r}" for n, v in {"models": count, **asked}.items()))
    return team


def _needed(models: Any, team: Team) -> set[int] | None:
    """Indices of the files that this process reads, its own and the first; None for all."""
    if isinstance(team, Alone) or not isinstance(models, Sequence):
        return None
    return {0, *dealt(len(models), team)}


def _check(method: str, methods: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse a method or options that do not exist."""
    if method not in methods:
        raise InputError(f"no method {method!r}; there are: {', '.join(sorted(methods))}")
    allowed = []
    if method in ALIGNERS:
        allowed = [
            name for name in inspect.signature(ALIGNERS[method]).parameters if name != "problem"
        ]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise InputError(
            f"method {method!r} has no option {', '.join(map(repr, unknown))}; its options are: "
            f"{', '.join(allowed) or 'none'}"
        )


def _kinds(symmetry: str, method: str, methods: Sequence[str], options: Mapping[str, Any]) -> Kinds:
    """Which groups are asked for; refuses methods and options that do not exist for them.

    Args:
        symmetry: of the caller.
        method: of the caller.
        methods: those that know permutations only.
        options: of the method.
    """
    kinds = kinds_named(symmetry)
    if kinds is Kinds.PERMUTATION:
        if method in MANY_METHODS and method not in methods:
            raise InputError(
                f"method {method!r} moves no permutation; it is for symmetry='signed' or 'all'"
            )
        _check(method, methods, options)
    elif method in MANY_METHODS:
        check_method(method, options, MANY_METHODS, given=_GIVEN)
    else:
        raise InputError(
            f"symmetry={symmetry!r} is for the methods {', '.join(map(repr, MANY_METHODS))}, "
            f"not for {method!r}"
        )
    return kinds


_GIVEN = ("states", "weights", "max_sweeps")
"""What a method for many models is given with its problem."""


class _Alignment:
    """Models that are brought to one order, checked before any work."""

    def __init__(
        self,
        sources: Sources,
        inputs: tuple[Any, Mapping[str, Any] | None],
        choices: Mapping[str, Any],
        verify: bool,
        team: Team,
    ) -> None:
        self._sources, self._verify, self._team = sources, verify, team
        self._choices = choices_for(sources.model, **choices)
        self._inputs = normalise_inputs(sources.model, *inputs, check=False)

    def found(
        self, method: str, effort: tuple[int, int], options: Mapping[str, Any]
    ) -> tuple[Permutation, ...]:
        """The permutations of all models, with the tensors of the architecture in each."""
        sources, team = self._sources, self._team
        first, own = agreed(
            team,
            lambda: shared_symmetry(sources, self._analysed, dealt(len(sources), team)),
        )
        known = gathered(team, lambda: {k: (s.relies_on, s.found_with) for k, s in own.items()})
        problem = AlignmentProblem(sources, first, *effort, team)
        found = to_first_order(ALIGNERS[method](problem, **options))
        return tuple(p.relying_on(*known[index]) for index, p in enumerate(found))

    def proved(self, index: int, permutation: Permutation) -> Permutation:
        """A permutation that leaves the function of its model as it is, or an error.

        Args:
            index: of the model.
            permutation: of the model, with the tensors of the architecture.
        """
        # no name for the state: it would be kept while the next one is read
        self._prove(self._sources.model, self._sources.whole_state(index), permutation, index)
        return permutation

    def over_groups(
        self, kinds: Kinds, effort: tuple[int, int], method: str, options: Mapping[str, Any]
    ) -> tuple[Alignment, ...]:
        """The alignments of all models with the first one."""
        sources = self._sources
        differing = [index for index in range(len(sources)) if sources.differs(index)]
        if differing:
            raise InputError(
                f"models[{differing[0]}] has tensors of its own; beyond permutations all models "
                "need the same ones"
            )
        shared_symmetry(sources, self._analysed)
        symmetry = symmetry_of(sources.model, *self._inputs, self._choices, kinds)
        seed, max_sweeps = effort
        first = sources.whole_state(0)
        names = [name for name, _ in sources.model.named_parameters(remove_duplicate=False)]
        plain = MatchingProblem(
            Permuted(symmetry.permuted, symmetry.layout),
            first,
            first,
            names,
            sources.model,
            seed,
            ignored=sources.ignored,
        )
        states = [sources.whole_state(index) for index in range(len(sources))]
        found = many_over_groups(
            symmetry,
            plain,
            sources.model,
            states,
            sources.weights,
            max_sweeps,
            method,
            **options,
        )
        for index, alignment in enumerate(found):
            self._prove(sources.model, states[index], alignment, index)
        return tuple(found)

    def for_each(self, permutations: Sequence[Permutation]) -> tuple[Permutation, ...]:
        """The same for the models as they are, with the tensors in which they differ."""
        mine = dealt(len(permutations), self._team)
        found = gathered(self._team, lambda: {k: self._own(k, permutations[k]) for k in mine})
        return tuple(found.values())

    def _own(self, index: int, permutation: Permutation) -> Permutation:
        proved = self.proved(index, permutation)
        return self._for_one(index, proved) if self._sources.differs(index) else proved

    def _for_one(self, index: int, permutation: Permutation) -> Permutation:
        """The same for a model with tensors of its own, proved with these if it runs."""
        sources = self._sources
        module = sources.module(index)
        own = None if module is None else symmetry_alone(module, self._analysed)
        if module is None or own is None:
            return by_shapes(
                permutation,
                sources.state(index),
                own_state(sources.model),
                sources.ignored,
                f"models[{index}]",
                sources.strangers(index),
            )
        result = in_own_group(own, permutation, sources.common, f"models[{index}]")
        self._prove(module, named_state(module), result, index)
        return result

    def _analysed(self, module: nn.Module) -> Symmetry:
        return symmetry_of(module, *self._inputs, self._choices)

    def _prove(
        self,
        module: nn.Module,
        state: Mapping[str, torch.Tensor],
        permutation: Certificate,
        index: int,
    ) -> None:
        if self._verify:
            wanted = self._choices.outputs
            prove_state(module, state, permutation, self._inputs, wanted, f"models[{index}]")
