"""The weights of a model in a tree of dictionaries, and all that lies beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import ArchitectureMismatchError, CheckpointError
from fxrebasin.models.checks import Difference, Remedy, differences_of, ignoring, mismatch
from fxrebasin.models.valueless import ValuelessError
from fxrebasin.storage.copies import (
    Copy,
    Wanted,
    belongs_to,
    beside,
    chosen_by_key,
    copies,
    decided,
    wanted_of,
)
from fxrebasin.storage.loader import loaded
from fxrebasin.storage.names import Naming, outside
from fxrebasin.storage.reading import Reading
from fxrebasin.storage.tree import KeyPath, optimisers, sequences, states
from fxrebasin.wording import listed, spoken

_TOP = "the top of the file"
_MOST_TRIED = 4  # copies that the model's own loader is asked about

# What training code keeps beside the weights of a model, at the top of the same dictionary: the
# schedule of a diffusion process (CompVis' ldm and its descendants), the count of AveragedModel.
_CONSTANTS = {
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "lvlb_weights",
    "n_averaged",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
}


@dataclass(frozen=True)
class Found:
    """The weights of a model, and what is beside them.

    Args:
        taken: the copy that was taken.
        others: other copies of the same weights.
        optimisers: places of the states of optimisers.
        nameless: places of lists of weights, and the names that these have in the model.
        state: tensors by name of the model, in its order.
        filled: names of those that are not in the taken copy.
        extra: names of other tensors in the same dictionary.
        notes: what was chosen and found, in sentences.
    """

    taken: Copy
    others: tuple[Copy, ...]
    optimisers: tuple[KeyPath, ...]
    nameless: Mapping[KeyPath, Sequence[str]]
    state: Mapping[str, torch.Tensor]
    filled: frozenset[str]
    extra: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is not written with other weights, a sentence each."""
        return tuple(
            f"The state of the optimiser ({'.'.join(map(str, place))}) is not written again: it "
            "belongs to the weights as they were."
            for place in self.optimisers
        )


def find(
    tree: Any, model: nn.Module, reading: Reading, label: str, *, values: bool = True
) -> Found:
    """The weights of a model in a tree.

    Args:
        tree: dictionaries with tensors.
        model: has the names and shapes.
        reading: what to take.
        label: what the tree is called in messages.
        values: False for a tree of forms, whose tensors have none.

    Raises:
        CheckpointError: there is nothing, or several copies between which no rule decides.
        ArchitectureMismatchError: names or shapes differ from the model's.
    """
    wanted = wanted_of(model, reading.ignore)
    skipped = tuple(optimisers(tree))
    everything = copies(tree, wanted, skipped)
    candidates = everything
    if reading.prefix:
        candidates = copies(tree, wanted, skipped, reading.prefix)
        candidates = candidates or copies(tree, wanted, skipped, f"{reading.prefix}.")
    if reading.key is not None:
        candidates = _with_key(candidates, reading.key, label)
    if not candidates:
        raise _nothing(tree, wanted, (model, reading, label))
    fitting = [copy for copy in candidates if not copy.unfit(wanted)]
    fitting = fitting or _by_loader(candidates, model, wanted)
    sources = [copy for copy in everything if not copy.unfit(wanted)]
    fitting = fitting or [c for c in candidates if sources and _only_buffers_lack(c, wanted)]
    if not fitting:
        raise _unfit(candidates[0], everything, wanted, (model, reading, label))
    taken = decided(label, fitting)
    others = tuple(beside(taken, everything, wanted))
    state, filled = _state(taken, sources, model, wanted, values=values)
    inside, extra = _extra(taken, others, model, wanted)
    _check(state, inside, wanted, (model, reading, label))
    if values:
        check_values(state, label)
    notes = _Notes(label, taken, others).sentences(filled, extra)
    lists = _nameless(tree, skipped, model)
    return Found(taken, others, skipped, lists, state, frozenset(filled), extra, notes)


def check_values(state: Mapping[str, torch.Tensor], label: str) -> None:
    """Refuse tensors that hold no numbers, or not one by one.

    Args:
        state: tensors by name.
        label: what holds them, in messages.

    Raises:
        CheckpointError: naming them.
    """
    kinds = {
        "without values (on the meta device)": [n for n, t in state.items() if t.is_meta],
        "that are sparse": [
            n for n, t in state.items() if t.layout is not torch.strided and not t.is_meta
        ],
        "that are quantised": [n for n, t in state.items() if t.is_quantized],
    }
    for what, names in kinds.items():
        if names:
            raise CheckpointError(
                f"{label} holds tensors {what}: {listed(names, 5)}. Save the weights themselves, "
                "dense and as floating-point numbers."
            )


def _nameless(
    tree: Any, skipped: Sequence[KeyPath], model: nn.Module
) -> dict[KeyPath, Sequence[str]]:
    """Lists of weights in the order of the parameters, as some averages are kept."""
    every = dict(model.named_parameters())
    trained = {name: p for name, p in every.items() if p.requires_grad}
    return {
        place: list(names)
        for place, tensors in sequences(tree, skipped)
        for names in (every, trained)
        if len(names) > 1 and [t.shape for t in tensors] == [p.shape for p in names.values()]
    }


def _with_key(candidates: Sequence[Copy], key: str, label: str) -> list[Copy]:
    chosen = chosen_by_key(candidates, key)
    if not chosen:
        labels = dict.fromkeys(copy.label for copy in candidates if copy.label)
        choices = f"it holds {listed([repr(name) for name in labels], 10)}" if labels else (
            "its tensors are not under any key"
        )  # fmt: skip
        raise CheckpointError(
            f"{label} has no weights of the model at {Remedy('key', (key,))}; {choices}."
        )
    return chosen


def _nothing(
    tree: Any, wanted: Wanted, context: tuple[nn.Module, Reading, str]
) -> CheckpointError | ArchitectureMismatchError:
    """The error for a tree without any name of the model."""
    _, reading, label = context
    found = sorted(states(tree, tuple(optimisers(tree))), key=lambda item: -len(item[1]))
    if not found:
        return no_tensors(label, tree)
    if reading.prefix:
        return CheckpointError(
            f"{label} holds no tensor of the model under {reading.prefix!r}; its names are "
            f"{listed(list(found[0][1]), 5)}."
        )
    return _unfit(Copy(*found[0], Naming({})), (), wanted, context)


def no_tensors(label: str, tree: Any) -> CheckpointError:
    """The error for a tree without dictionaries of tensors.

    Args:
        label: what the tree is called in messages.
        tree: of dictionaries.
    """
    return CheckpointError(
        f"{label} holds no tensors by name: {_contents(tree)}. Save the weights with "
        "`torch.save(model.state_dict(), path)`."
    )


def _contents(tree: Any) -> str:
    if not isinstance(tree, Mapping):
        return f"it is a {type(tree).__name__}"
    return f"its keys are {listed([str(key) for key in tree], 8)}" if tree else "it is empty"


def _by_loader(candidates: Sequence[Copy], model: nn.Module, wanted: Wanted) -> list[Copy]:
    """Copies that fit because the model's own loader takes other names, or does without some."""
    for copy in candidates[:_MOST_TRIED]:
        naming = copy.naming
        own = {there: name for name, there in naming.names.items()}
        start = naming.prefix if naming.plain else ""
        state = {
            own.get(name, naming.own_prefix + name.removeprefix(start)): tensor
            for name, tensor in copy.tensors.items()
            if name in own or (name.startswith(start) and not outside(naming, name))
        }
        found = loaded(model, state)
        if found is None or any(not wanted.ignored(name) for name in found.missing):
            continue
        back = {own.get(name, naming.own_prefix + name.removeprefix(start)): name
                for name in copy.tensors}  # fmt: skip
        names = {name: back[given] for name, given in found.names.items()}
        return [replace(copy, naming=replace(naming, names={**naming.names, **names}))]
    return []


def _only_buffers_lack(copy: Copy, wanted: Wanted) -> bool:
    return not set(copy.unfit(wanted)) - wanted.buffers


def _state(
    taken: Copy, sources: Sequence[Copy], model: nn.Module, wanted: Wanted, *, values: bool
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by name of the model; and for those not in the copy, where they come from."""
    own = model.state_dict()
    state: dict[str, torch.Tensor] = {}
    filled: dict[str, str] = {}
    for name in wanted.shapes:
        if taken.source(name, wanted) is not None:
            state[name] = taken.tensors[str(taken.source(name, wanted))]
            continue
        if wanted.ignored(name):
            continue
        elsewhere = next((copy for copy in sources if copy.source(name, wanted)), None)
        if elsewhere is not None:
            filled[name] = f"those of {elsewhere.label or _TOP}"
            state[name] = elsewhere.tensors[str(elsewhere.source(name, wanted))]
        else:
            filled[name] = "the model's own"
            value = own[name].detach()
            if value.is_meta and values and name not in wanted.buffers:
                raise ValuelessError(f"the model has no values for {name}, nor has the checkpoint")
            state[name] = torch.zeros_like(value, device="cpu") if value.is_meta else value
    return state, filled


def _extra(
    taken: Copy, others: Sequence[Copy], model: nn.Module, wanted: Wanted
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Tensors that the model should have if they were its own, by its names; and all the others."""
    naming = taken.naming
    used = set(naming.names.values())
    passing = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    inside: dict[str, torch.Tensor] = {}
    extra = []
    for name, tensor in taken.tensors.items():
        if name in used or any(belongs_to(copy, taken.place, name) for copy in others):
            continue
        own = naming.own_prefix + name.removeprefix(naming.prefix)
        if own in passing and own not in wanted.shapes:
            continue  # stored by a version in which this buffer was persistent
        extra.append(name)
        if not outside(naming, name) and name not in _CONSTANTS and not wanted.ignored(own):
            inside[own] = tensor
    return inside, tuple(extra)


def _check(
    state: Mapping[str, torch.Tensor],
    inside: Mapping[str, torch.Tensor],
    wanted: Wanted,
    context: tuple[nn.Module, Reading, str],
) -> None:
    """Refuse a copy with tensors that the model does not have, or of another kind of dtype."""
    model, reading, label = context
    own = _tensors(model)
    compared = {n: t for n, t in own.items() if n in state and not wanted.ignored(n)}
    # Counters that were converted with all the rest are no weights; torch loads them as well.
    counts = {n for n in compared if n in wanted.buffers and compared[n].ndim == state[n].ndim == 0}
    compared = {n: t for n, t in compared.items() if n not in counts}
    theirs = {n: state[n] for n in compared} | ({} if reading.ignore_extra else dict(inside))
    differences = differences_of(compared, theirs)
    if differences:
        remedy = _remedy(differences, own, reading.ignore)
        raise mismatch(differences, len(own), ("the model", label), remedy)


def _unfit(
    best: Copy, everything: Sequence[Copy], wanted: Wanted, context: tuple[nn.Module, Reading, str]
) -> ArchitectureMismatchError:
    """What the copy that fits best lacks, and which option would make it fit."""
    model, reading, label = context
    own = _tensors(model)
    inside, _ = _extra(best, (), model, wanted)
    theirs = {n: best.tensors[there] for n, there in best.naming.names.items()}
    theirs |= {n: theirs[t] for n in own for t in wanted.ties[n] if n not in theirs and t in theirs}
    compared = {name: tensor for name, tensor in own.items() if not wanted.ignored(name)}
    found = {n: t for n, t in theirs.items() if n in compared} | inside
    differences = differences_of(compared, found)
    other = next((copy for copy in everything if not copy.unfit(wanted)), None)
    if other is not None and reading.key is not None and reading.prefix is None:
        remedy: Remedy | None = Remedy("key", (other.label,))
    elif other is not None and other.naming.prefix:
        remedy = Remedy("prefix", (other.naming.prefix,))
    else:
        remedy = _remedy(differences, own, reading.ignore)
    return mismatch(differences, len(own), ("the model", label), remedy)


def _remedy(
    differences: Sequence[Difference], own: Mapping[str, torch.Tensor], ignore: Sequence[str]
) -> Remedy | None:
    if all(difference.left is None for difference in differences):
        return Remedy("ignore_extra")
    return ignoring(differences, own, ignore)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}


@dataclass(frozen=True)
class _Notes:
    """What people want to know of how weights were found."""

    label: str
    taken: Copy
    others: Sequence[Copy]

    def sentences(self, filled: Mapping[str, str], extra: Sequence[str]) -> tuple[str, ...]:
        """One for each thing that was chosen."""
        parts = (self._copies(), *self._prefixes(), self._filled(filled), self._extra(extra))
        return tuple(part for part in parts if part)

    def _copies(self) -> str:
        name = self.taken.label or _TOP
        if self.others:
            labels = listed([copy.label or _TOP for copy in self.others], 5)
            return (
                f"{self.label} holds {1 + len(self.others)} copies of the weights; taken was "
                f"{name}, not {labels} ({spoken('key=', '--key')} chooses)."
            )
        return f"The weights of {self.label} are an average ({name})." if self.taken.average else ""

    def _prefixes(self) -> list[str]:
        naming = self.taken.naming
        found = []
        if naming.prefix:
            found.append(
                f"Names in {self.label} begin with {naming.prefix!r}, which was taken off."
            )
        if naming.own_prefix:
            found.append(f"Names in {self.label} lack {naming.own_prefix!r}, which was put before.")
        return found

    def _filled(self, filled: Mapping[str, str]) -> str:
        if not filled:
            return ""
        sources = " and ".join(dict.fromkeys(filled.values()))
        return f"{self.label} does without {listed(list(filled), 3)}; taken are {sources}."

    def _extra(self, extra: Sequence[str]) -> str:
        count = len(extra)
        if not count:
            return ""
        what = "a tensor that is" if count == 1 else f"{count} tensors that are"
        return f"{self.label} holds {what} not the model's: {listed(list(extra), 3)}."
