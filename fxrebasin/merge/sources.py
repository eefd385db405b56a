"""Models to merge, which may be files: read when they are needed, and let go afterwards."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.merge.heads import IgnoredFrom, giver_of
from fxrebasin.merge.states import checked, own_state, states_of
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.running.batches import State
from fxrebasin.running.own_structure import own_structure
from fxrebasin.storage.reference import ignored_in, names_beyond, patterns_that_fit

_MOST_KEPT = 2
"""States of files that are held at a time: that in use, and the one before it."""


class Sources:
    """Models of one architecture; each is checked when its weights are first asked for.

    Of modules and state dicts that is at once. Files are read when they are needed, and the last
    ones are kept; a file that is missing is refused at once.

    Args:
        models: modules, or paths of files of weights.
        model: the architecture; the first module when left out.
        weights: of the models, above 0; all the same when left out.
        ignore: names or patterns of tensors in which the models differ.
        ignored_from: which model gives these.
        needed: indices of the files that have to be there; all when left out.

    Attributes:
        ignored: names of the tensors in which the models may differ.
        common: names of all others.

    Raises:
        ArchitectureMismatchError: the models differ in names, shapes or ties of their tensors.
        CheckpointError: a file cannot be read.
        InputError: a model cannot be used, there is none, or weights do not fit.
    """

    def __init__(
        self,
        models: Sequence[Any],
        model: nn.Module | None,
        weights: Sequence[float] | None,
        ignore: Sequence[str] = (),
        ignored_from: IgnoredFrom = "first",
        needed: Collection[int] | None = None,
    ) -> None:
        given = _listed(models)
        self.weights = _shares(weights, len(given))
        self._models, self.model = _with_architecture(given, model)
        self._patterns = patterns_that_fit(ignore, self.model, self._models)
        self.ignored = ignored_in(self.model, self._patterns)
        ours = dict.fromkeys([*named_state(self.model), *self.model.state_dict()])
        self.common = frozenset(ours.keys() - set(self.ignored))
        self._ignored_from = ignored_from
        self._in_memory: dict[int, State] = {}
        self._read: dict[int, State] = {}
        self._strangers: dict[int, list[str]] = {}
        self._differing: dict[int, bool] = {}
        for index, source in enumerate(self._models):
            if not isinstance(source, str | PathLike):
                self._in_memory[index] = self._checked(index)
            elif (needed is None or index in needed) and not Path(source).exists():
                self.state(index)  # to refuse it before any work

    def __len__(self) -> int:
        return len(self._models)

    def state(self, index: int) -> State:
        """The weights of one model by the names of the architecture; read now if it is a file.

        Args:
            index: of the model.
        """
        if index in self._in_memory:
            return self._in_memory[index]
        found = self._read.pop(index, None)
        if found is None:
            while len(self._read) >= _MOST_KEPT:
                del self._read[next(iter(self._read))]
            found = self._checked(index)
        self._read[index] = found
        return found

    def _checked(self, index: int) -> State:
        label = f"models[{index}]"
        return states_of(self.model, [self._models[index]], [label], self._patterns)[1]

    def common_state(self, index: int) -> State:
        """The same without the tensors in which the models differ.

        Args:
            index: of the model.
        """
        return {n: t for n, t in self.state(index).items() if n in self.common}

    def differs(self, index: int) -> bool:
        """Whether a model has other tensors than the architecture, or lacks some.

        Args:
            index: of the model.
        """
        if not self._patterns:
            return False
        if index not in self._differing:
            self._differing[index] = self._differs(index)
        return self._differing[index]

    def _differs(self, index: int) -> bool:
        module = self.module(index)
        theirs = self.state(index) if module is None else own_state(module)
        shapes = [{n: t.shape for n, t in s.items()} for s in (theirs, own_state(self.model))]
        return shapes[0] != shapes[1] or bool(self.strangers(index))

    def strangers(self, index: int) -> list[str]:
        """Names of the tensors that are ignored, and that the architecture does not have.

        Args:
            index: of the model.
        """
        if index not in self._strangers:
            beyond = names_beyond(self._models[index], self.model, self._patterns)
            self._strangers[index] = beyond
        return self._strangers[index]

    def whole_state(self, index: int) -> State:
        """The weights of one model, with the buffers that its state dict leaves out if it is a
        module. Tensors in which the models differ are those of the architecture.

        Args:
            index: of the model.
        """
        module, ours = self.module(index), named_state(self.model)
        own = {} if module is None else named_state(module)
        known = {name: tensor for name, tensor in own.items() if name in ours}
        heads = {name: ours[name] for name in self.ignored}
        return {**known, **self.state(index), **heads}

    def module(self, index: int) -> nn.Module | None:
        """One model, in a structure that the call owns, unless it is a file.

        Args:
            index: of the model.
        """
        found = self._models[index]
        return found if isinstance(found, nn.Module) else None

    def giver(self) -> int:
        """Index of the model that gives the tensors in which models differ.

        Raises:
            InputError: there is no such model, or it has others than the class of the result.
        """
        own = [k for k in range(len(self)) if self.module(k) is self.model]
        candidates = own[:1] or list(range(len(self)))
        return giver_of(
            self.model, self.ignored, self.state, candidates, self._ignored_from, len(self)
        )

    def share(self, index: int) -> float:
        """How much a model counts in the mean of it and those before it.

        Args:
            index: of the model.
        """
        return self.weights[index] / sum(self.weights[: index + 1])

    @property
    def heaviest(self) -> int:
        """Index of the model that counts most; the first of several."""
        return max(range(len(self)), key=lambda k: self.weights[k])


def _listed(models: Sequence[Any]) -> list[Any]:
    if isinstance(models, nn.Module | str | PathLike) or not isinstance(models, Sequence):
        raise InputError(
            f"models is a {type(models).__name__}; pass a list of modules or of paths of files"
        )
    if not models:
        raise InputError("models is empty; pass at least one")
    return list(models)


def _with_architecture(
    models: Sequence[Any], model: nn.Module | None
) -> tuple[list[Any], nn.Module]:
    """The models and the architecture, with one structure of the call's own for each module."""
    own: dict[int, nn.Module] = {}

    def owned(given: nn.Module, label: str) -> nn.Module:
        module = checked(given, label)
        if id(module) not in own:
            own[id(module)] = own_structure(module)
        return own[id(module)]

    if model is not None:
        owned(model, "the model")
    found = [
        owned(given, f"models[{index}]") if isinstance(given, nn.Module) else given
        for index, given in enumerate(models)
    ]
    if own:
        return found, next(iter(own.values()))
    raise InputError(
        "all models are files of weights; pass model=, a module of their architecture, whose own "
        "weights do not matter"
    )


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights whose sum is 1."""
    if weights is None:
        return [1 / count] * count
    try:
        given = [float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise InputError(f"weights are {weights!r}; pass one number for each model") from error
    if len(given) != count:
        raise InputError(f"weights has {len(given)} numbers for {count} models")
    if not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise InputError(f"weights are {given}; they have to be numbers above 0")
    return [weight / sum(given) for weight in given]
