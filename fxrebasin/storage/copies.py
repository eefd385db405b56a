"""Which of the dictionaries in a checkpoint are the weights of a model, and which one is taken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from fxrebasin.errors import CheckpointError
from fxrebasin.storage.names import WRAPPERS, Naming, Shapes, namings, stem, steps
from fxrebasin.storage.tree import KeyPath, states
from fxrebasin.wording import listed, spoken

_AVERAGE = re.compile(r"(^|[_.-])(ema|swa|averaged?|shadow)\d*([_.-]|$)", re.IGNORECASE)
_USUAL = WRAPPERS | {
    "model",
    "model_state_dict",
    "net",
    "network",
    "params",
    "pytorch_model",
    "state_dict",
    "weights",
}


@dataclass(frozen=True)
class Wanted:
    """What a model needs.

    Args:
        shapes: of its tensors by name.
        ties: the names of one tensor, by each of them.
        buffers: names that are no parameters.
        ignore: patterns of names that may be missing, or of another shape.
    """

    shapes: Shapes
    ties: Mapping[str, Sequence[str]]
    buffers: frozenset[str]
    ignore: tuple[str, ...] = ()

    def ignored(self, name: str) -> bool:
        """Whether a tensor may be missing or of another shape."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)


@dataclass(frozen=True)
class Copy:
    """The weights of a model in a checkpoint.

    Args:
        place: of the dictionary.
        tensors: all that are in it.
        naming: which of them are the model's.
    """

    place: KeyPath
    tensors: Mapping[str, torch.Tensor]
    naming: Naming

    @property
    def label(self) -> str:
        """The path by which it is chosen."""
        return ".".join([*map(str, self.place), *steps(self.naming)])

    @property
    def average(self) -> bool:
        """Whether it is an average over training, by its name."""
        return any(_AVERAGE.search(str(step)) for step in self._steps)

    @property
    def usual(self) -> bool:
        """Whether nothing but usual names lead to it."""
        return all(str(step).split(".")[0] in _USUAL for step in self._steps)

    @property
    def partial_average(self) -> bool:
        """Whether it is an average of some of the weights: most of what lies there is the model's.

        An average of those that were trained, for instance.
        """
        own = stem(self.naming)
        there = sum(name.startswith(own) for name in self.tensors)
        return self.average and 2 * self.naming.fits > there

    @property
    def _steps(self) -> list[str]:
        return [*map(str, self.place), *steps(self.naming)]

    def unfit(self, wanted: Wanted) -> list[str]:
        """Names of the model that are missing here or have another shape, and may not."""
        return [name for name in wanted.shapes if not self._fits(name, wanted)]

    def _fits(self, name: str, wanted: Wanted) -> bool:
        if wanted.ignored(name):
            return True
        source = self.source(name, wanted)
        shape = wanted.shapes[name]
        return source is not None and shape in (None, self.tensors[source].shape)

    def source(self, name: str, wanted: Wanted) -> str | None:
        """The name in the file of a tensor of the model, which may be that of one tied to it."""
        tied = (name, *wanted.ties.get(name, ()))
        return next((self.naming.names[n] for n in tied if n in self.naming.names), None)


def copies(
    tree: object, wanted: Wanted, skipped: Sequence[KeyPath], prefix: str | None = None
) -> list[Copy]:
    """All that could be the model's weights, those of which the most fits first."""
    found = []
    for place, tensors in states(tree, skipped):
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        found += [Copy(place, tensors, n) for n in namings(shapes, wanted.shapes, prefix)]
    return sorted(found, key=lambda copy: -copy.naming.fits)


def chosen_by_key(found: Sequence[Copy], key: str) -> list[Copy]:
    """The copies that a path leads to; those that it names exactly, if there are any."""
    exact = [copy for copy in found if copy.label == key]
    return exact or [copy for copy in found if copy.label.startswith(f"{key}.")]


def decided(label: str, fitting: Sequence[Copy]) -> Copy:
    """The copy to take among several that fit.

    The weights themselves come before averages of them, and what lies where weights usually lie
    comes before the rest. Copies of equal values are one.

    Args:
        label: what the checkpoint is called in the message.
        fitting: at least one, the simplest first.

    Raises:
        CheckpointError: several are left, and differ.
    """
    left = [copy for copy in fitting if not copy.average] or list(fitting)
    left = [copy for copy in left if copy.usual] or left
    simplest = min(_prefixes(copy.naming) for copy in left)
    left = [copy for copy in left if _prefixes(copy.naming) == simplest]
    first, *rest = left
    if any(not _equal(first, other) for other in rest):
        choices = listed([repr(copy.label) for copy in left], 10)
        raise CheckpointError(
            f"{label} holds {len(left)} different copies of the model's weights. Say which one is "
            f"meant with {spoken('key=', '--key')}, one of {choices}."
        )
    return first


def _prefixes(naming: Naming) -> int:
    return (naming.prefix != "") + (naming.own_prefix != "")


def _equal(first: Copy, second: Copy) -> bool:
    if first.naming.names.keys() != second.naming.names.keys():
        return False
    pairs = (
        (first.tensors[there], second.tensors[second.naming.names[name]])
        for name, there in first.naming.names.items()
    )
    # Without values nothing is known to be equal.
    return all(not a.is_meta and torch.equal(a, b) for a, b in pairs)


def beside(taken: Copy, found: Sequence[Copy], wanted: Wanted) -> list[Copy]:
    """The other copies in a checkpoint: all parameters of the model, or averages of some.

    Args:
        taken: the one that was taken.
        found: all that could be one.
        wanted: what a copy has to have; its buffers may be missing.
    """
    used = {taken.place: set(taken.naming.names.values())}
    result = []
    for copy in found:
        own = set(copy.naming.names.values())
        complete = not set(copy.unfit(wanted)) - wanted.buffers or copy.partial_average
        alike = copy.average or copy.naming.own_prefix == taken.naming.own_prefix
        if complete and alike and not own & used.setdefault(copy.place, set()):
            used[copy.place] |= own
            result.append(copy)
    return result


def belongs_to(copy: Copy, place: KeyPath, name: str) -> bool:
    """Whether a tensor is one of a copy, or lies beside its tensors under the same name."""
    if place != copy.place:
        return False
    own = stem(copy.naming)
    return name in copy.naming.names.values() or (own != "" and name.startswith(own))


def wanted_of(model: nn.Module, ignore: tuple[str, ...] = ()) -> Wanted:
    """What a model needs, from its state dict."""
    own = model.state_dict(keep_vars=True)
    tensors = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return Wanted(
        {name: tensor.shape for name, tensor in tensors.items()},
        {name: [n for n in names[id(t)] if n != name] for name, t in tensors.items()},
        frozenset(tensors.keys() - parameters),
        ignore,
    )
