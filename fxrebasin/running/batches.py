"""Running a model on batches of data with weights that are not its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fxrebasin.errors import InputError
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.running.modes import modes_off
from fxrebasin.running.preserve import WriteGuard, preserve
from fxrebasin.running.randomness import DrawingFrom, OwnNumbers

State: TypeAlias = Mapping[str, torch.Tensor]
Loss: TypeAlias = Callable[[Any, Any], Any]

_NO_MORE = object()
_HOW = (
    "A batch is (inputs, targets) or inputs alone; inputs are a tensor, a tuple of positional "
    "inputs, or a dict of keyword inputs."
)


@dataclass(frozen=True)
class Batch:
    """Inputs of one call of the model, and what a loss compares its outputs with.

    Args:
        number: in the loader, from 0.
        args: positional inputs.
        kwargs: keyword inputs.
        targets: None if the loader gives none.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any


class Runner:
    """A model that runs with other weights; made by `runner`.

    Args:
        model: in eval mode.
        guard: what protects the model's tensors while it runs.
        label: what messages call the model.
        drawing: what a loader draws its order from.
    """

    def __init__(
        self,
        model: nn.Module,
        guard: AbstractContextManager[Any] | None = None,
        label: str = "the model",
        drawing: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.model, self._label = model, label
        self._guard = guard or nullcontext()
        self._drawing = drawing or nullcontext()
        # Without second names of shared tensors, which stay shared that way.
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._names = dict(tensors)
        floating = [t for t in self._names.values() if t.is_floating_point()]
        self.device = tensors[0][1].device if tensors else torch.device("cpu")
        self.dtype = floating[0].dtype if floating else torch.get_default_dtype()

    def own(self, state: State) -> dict[str, torch.Tensor]:
        """The tensors of a state that the model has, once each, on its device and in its dtypes.

        Args:
            state: tensors by name.
        """
        return {n: state[n].detach().to(t) for n, t in self._names.items() if n in state}

    def batches(self, loader: Iterable[Any], most: int | None) -> Iterator[Batch]:
        """The batches of a loader, on the device of the model; floating inputs in its dtype.

        Args:
            loader: any iterable of batches.
            most: number of batches; all when None.

        Raises:
            InputError: what the loader gives is not a batch, or it gives none.
        """
        if not isinstance(loader, Iterable):
            raise InputError(f"the loader is of type {type(loader).__name__}, not iterable. {_HOW}")
        number = 0
        with self._drawing:
            items = iter(loader)
        while most is None or number < most:
            with self._drawing:
                item = next(items, _NO_MORE)
            if item is _NO_MORE:
                break
            yield self._batch(number, item)
            number += 1
        if not number:
            raise InputError(
                "the loader gives no batches. Pass a list of batches or a DataLoader; an iterator "
                f"can be used up only once. {_HOW}"
            )

    def moved(self, batch: Batch) -> Batch:
        """A batch of another runner, on the device and in the dtype of this model.

        Args:
            batch: from `batches`.
        """
        args, kwargs = _pytree.tree_map(self._moved, (batch.args, batch.kwargs))
        return Batch(batch.number, args, kwargs, batch.targets)

    def call(self, state: State, batch: Batch) -> Any:
        """The outputs for a batch.

        Args:
            state: from `own`; what it lacks is the model's.
            batch: from `batches`.

        Raises:
            InputError: the model does not run on the batch.
        """
        outputs: list[Any] = []
        with self._guard:
            error = attempt(
                lambda: outputs.append(
                    torch.func.functional_call(self.model, dict(state), batch.args, batch.kwargs)
                )
            )
        if error is not None:
            raise InputError(
                f"{self._label} does not run on batch {batch.number} of the loader: "
                f"{first_lines(error)} {_HOW}"
            ) from error
        return outputs[0]

    def watched(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What an operator of the model returns, seen by what protects the model's tensors.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        with self._guard:
            return func(*args, **kwargs)

    def keep(self, module: nn.Module) -> None:
        """What the tensors of a part of the model hold now is not undone.

        Args:
            module: a part of the model that the caller has written to.
        """
        if isinstance(self._guard, WriteGuard):
            self._guard.keep([*module.parameters(), *module.buffers()])

    def beside(self, model: nn.Module, guard: AbstractContextManager[Any]) -> Runner:
        """A runner of a copy of the model's structure.

        Args:
            model: the copy, with the tensors of the model.
            guard: what its operators go through.
        """
        return Runner(model, guard, self._label)

    @property
    def wrote(self) -> bool:
        """Whether the model has changed one of its tensors."""
        return isinstance(self._guard, WriteGuard) and self._guard.wrote

    def _batch(self, number: int, item: Any) -> Batch:
        inputs, targets = item, None
        if isinstance(item, list | tuple):
            if len(item) not in (1, 2):
                raise InputError(f"batch {number} of the loader has {len(item)} parts. {_HOW}")
            inputs, targets = item[0], item[1] if len(item) == 2 else None
        inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
        inputs = _pytree.tree_map(self._moved, inputs)
        if isinstance(inputs, dict):
            return Batch(number, (), inputs, _pytree.tree_map(self._placed, targets))
        if not isinstance(inputs, torch.Tensor | list | tuple):
            kind = type(inputs).__name__
            raise InputError(f"batch {number} of the loader is of type {kind}. {_HOW}")
        args = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
        return Batch(number, args, {}, _pytree.tree_map(self._placed, targets))

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(self.device, self.dtype)
        return self._placed(value)

    def _placed(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, torch.Tensor) else value


@contextmanager
def runner(model: nn.Module | None, seed: int, label: str = "the model") -> Iterator[Runner]:
    """A runner; afterwards the model and all random state are as they were before.

    Args:
        model: whose code is run.
        seed: of what the model draws, and of what a DataLoader takes its order from.
        label: what messages call the model.

    Raises:
        InputError: there is no model.
    """
    if model is None:
        raise InputError("this method runs the model: call fxrebasin.match, which passes it on")
    numbers = OwnNumbers(seed)
    with preserve(model, numbers):
        # The guard of `preserve` looks at every operator; only those of the model concern it.
        guard = _get_current_dispatch_mode()
        with modes_off():
            yield Runner(model, guard, label, DrawingFrom(numbers))


class Line:
    """Losses of the models between the reference and a model, `(1 − t)·A + t·B`.

    BatchNorm uses the statistics of the batch: those of two models, averaged, describe neither.

    Args:
        runner: of the model.
        state_a: of the reference. What it lacks is everywhere as `state_b` has it.
        loss: of outputs and targets.
    """

    def __init__(self, runner: Runner, state_a: State, loss: Loss) -> None:
        self.runner, self._loss = runner, loss
        self.state_a = runner.own(state_a)
        self._buffers = {name for name, _ in runner.model.named_buffers()}
        for module in runner.model.modules():
            if isinstance(module, _BatchNorm):
                module.train()

    def loss(self, state_b: State, batch: Batch, t: float = 0.5) -> torch.Tensor:
        """The loss on a batch, differentiable in `state_b`.

        Args:
            state_b: of the model, from `Runner.own`.
            batch: of the loader.
            t: position on the line.

        Raises:
            InputError: the loss is not a finite number.
        """
        between = {
            name: torch.lerp(a, state_b[name], t) if a.is_floating_point() else a.clone()
            for name, a in self.state_a.items()
        }
        # The model writes to its buffers, and these may be those of the caller.
        between |= {
            name: b.clone() if name in self._buffers else b
            for name, b in state_b.items()
            if name not in between
        }
        # Operators are not differentiable in running statistics.
        between |= {name: between[name].detach() for name in self._buffers & between.keys()}
        value = self._loss(self.runner.call(between, batch), batch.targets)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.isfinite().all():
            raise InputError(f"the loss has to give one finite number, got {value!r}")
        return value.reshape(())

    def slopes(self, value: torch.Tensor, leaves: State) -> dict[str, torch.Tensor]:
        """Derivatives of a loss.

        Args:
            value: the loss.
            leaves: tensors that it was made of, by name.

        Raises:
            InputError: the loss cannot be differentiated.
        """
        if not leaves:
            return {}
        if not value.requires_grad:
            raise InputError("the loss cannot be differentiated; it must not detach the outputs")
        found = torch.autograd.grad(
            value, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(leaves, found, strict=True))

    def mean_loss(self, state_b: State, loader: Iterable[Any], most: int | None) -> float:
        """The mean over batches at the midpoint.

        Args:
            state_b: of the model, from `Runner.own`.
            loader: any iterable that can be gone through again.
            most: number of batches; all when None.
        """
        with torch.no_grad():
            losses = [float(self.loss(state_b, b)) for b in self.runner.batches(loader, most)]
        return sum(losses) / len(losses)


def check_loader(loader: Iterable[Any]) -> None:
    """Refuse a loader that can be gone through only once.

    Args:
        loader: of the caller.

    Raises:
        InputError: it is an iterator, or nothing that can be iterated.
    """
    if not isinstance(loader, Iterable):
        raise InputError(f"the loader is of type {type(loader).__name__}, not iterable. {_HOW}")
    if isinstance(loader, Iterator):
        raise InputError(
            "the loader is an iterator, which can be gone through only once; pass a list of "
            "batches or a DataLoader"
        )
