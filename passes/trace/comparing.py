"""Whether a graph computes what the model does that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxrebasin.errors import InputError
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.running.apart import relative_error
from fxrebasin.running.dry_run import DryRun, dry_run
from fxrebasin.running.given import Given, remade
from fxrebasin.running.messages import attempt, describe, first_lines
from fxrebasin.running.outputs import Wanted, counted, reduced
from fxrebasin.running.preserve import preserve
from fxrebasin.running.randomness import OwnNumbers, python_numbers, seed_in_python
from fxrebasin.running.subclasses import like
from fxrebasin.wording import spoken

_DRAWS = 8
"""How often a model that draws random numbers is compared with a graph: masks may be alike once."""


@dataclass(frozen=True)
class Call:
    """A call of a model, and which of its outputs count."""

    model: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    wanted: Wanted

    @property
    def has_numbers(self) -> bool:
        """Whether all parameters of the model have them."""
        return not any(parameter.is_meta for parameter in self.model.parameters())

    def own_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the inputs, which a model may write to."""
        values = (tuple(self.args), dict(self.kwargs))
        args, kwargs = remade(values, lambda tensor: tensor.detach().clone())
        return args, kwargs


def difference(
    call: Call,
    graph_module: fx.GraphModule,
    expected: DryRun | None,
    still: frozenset[str] | None,
) -> str | None:
    """What tells the graph from the model; None if they compute the same.

    Args:
        call: of the model.
        graph_module: of it.
        expected: the operators that the model applies, if these could be seen.
        still: names of what only the graph reads by name, so that other numbers would reach it
            alone; None if all weights are to stay as they are, since no number is in the graph.
    """
    found: list[DryRun] = []
    error = attempt(
        lambda: found.append(dry_run(graph_module, call.args, call.kwargs, call.wanted))
    )
    in_python = _draws_in_python(call) if expected is None else expected.draws_in_python
    if expected is not None and not in_python and found and found[0].program == expected.program:
        outputs = found[0].outputs(call.wanted, strict=False)
        if list(outputs.items()) == list(expected.outputs(call.wanted).items()):
            return None
    if not call.has_numbers:
        return None if error is None else first_lines(error)
    seeds = range(1, 1 + (_DRAWS if expected is not None and expected.draws else 1))
    differences = (
        _numeric_difference(call, graph_module, seed, in_python, still) for seed in seeds
    )
    return next((found for found in differences if found is not None), None)


def unfilled(put: Sequence[str]) -> str:
    """What to do about outputs that a graph cannot put into what is passed in."""
    return (
        f"its graphs do not fill what is passed in ({', '.join(put)}); let forward return that, or "
        f"leave it out by saying with {spoken('outputs=', '--outputs')} which outputs count"
    )


def fault_of(call: Call) -> str | None:
    """What the model says against a call when it is really run."""
    args, kwargs = call.own_inputs()

    def run() -> None:
        with preserve(call.model), torch.no_grad():
            call.model(*args, **kwargs)

    error = attempt(run)
    return None if error is None else first_lines(error)


def _draws_in_python(call: Call) -> bool:
    """Whether a model takes numbers from Python's generator or numpy's, which threads share.

    They are begun anew for no other model.
    """
    args, kwargs = call.own_inputs()
    with preserve(call.model), torch.no_grad():
        numbers = python_numbers()
        attempt(lambda: call.model(*args, **kwargs))
        return python_numbers() != numbers


def _numeric_difference(
    call: Call,
    graph_module: fx.GraphModule,
    seed: int,
    in_python: bool,
    still: frozenset[str] | None = frozenset(),
) -> str | None:
    """What tells the graph from the model with other weights.

    Args:
        call: of the model.
        graph_module: of it.
        seed: of random numbers: another one than that of which a graph was made, since it may have
            folded what was drawn.
        in_python: whether numbers of Python and numpy are among these.
        still: names of the weights that stay as they are; all if None.
    """
    outputs: list[dict[str, torch.Tensor]] = []
    state: dict[str, torch.Tensor] = {}
    versions: list[int] = []
    for module in (call.model, graph_module):
        if versions != [tensor._version for tensor in state.values()] or not state:
            state = _other_weights(named_state(call.model), still)
            versions = [tensor._version for tensor in state.values()]

        def run(module: nn.Module = module, state: dict[str, torch.Tensor] = state) -> None:
            outputs.append(_outputs(module, state, call, seed, in_python))

        error = attempt(run)
        if isinstance(error, InputError):  # the outputs are refused, or there are none of the names
            raise error
        if error is not None:
            return f"with other weights it raises {first_lines(error)}"
    wanted, got = outputs
    if list(wanted) != list(got):
        lost = [name for name in wanted if name.startswith("inputs.") and name not in got]
        more = f"; {unfilled(lost)}" if lost else ""
        return f"its outputs are {', '.join(got) or 'none'}, the model's {', '.join(wanted)}{more}"
    for name, left in wanted.items():
        if not _agree(left, got[name]):
            return f"{name} ({describe(got[name])}) differs from the model's ({describe(left)})"
    return None


def _outputs(
    module: nn.Module, state: dict[str, torch.Tensor], call: Call, seed: int, in_python: bool
) -> dict[str, torch.Tensor]:
    args, kwargs = call.own_inputs()
    given = Given(args, kwargs, values=True)
    with preserve(module, OwnNumbers(seed)):
        if in_python:
            seed_in_python(seed)
        returned = torch.func.functional_call(module, state, args, kwargs)
        returned = reduced(module, returned, call.wanted)
        return counted(returned, call.wanted, given, strict=module is call.model)


def _other_weights(
    state: Mapping[str, torch.Tensor], still: frozenset[str] | None
) -> dict[str, torch.Tensor]:
    """Weights of its own for a model, to which it may write."""
    if still is not None:
        return _disturbed(state, still)
    copies = {id(tensor): tensor.detach().clone() for tensor in state.values()}
    return {name: copies[id(tensor)] for name, tensor in state.items()}


def _disturbed(state: Mapping[str, torch.Tensor], still: frozenset[str]) -> dict[str, torch.Tensor]:
    """Every floating-point tensor times factors from 0.75 to 1.25; tied tensors stay tied."""
    generator = torch.Generator().manual_seed(0)
    made = {id(state[name]): state[name].detach().clone() for name in still}
    for tensor in state.values():
        if id(tensor) not in made and tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float32)
            factors = drawn.div_(2).add_(0.75).to(tensor.device, tensor.dtype)
            made[id(tensor)] = like(tensor, tensor.detach() * factors)
    return {name: made.get(id(tensor), tensor.detach()) for name, tensor in state.items()}


def _agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal up to the rounding of the same operators in another order."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.is_floating_point() or torch.equal(left, right):
        return torch.equal(left, right)
    endless = ~left.isfinite()
    if not torch.equal(endless, ~right.isfinite()):
        return False
    if not torch.allclose(left[endless], right[endless], equal_nan=True):
        return False
    differ = (left != right) & ~endless  # what is equal, such as a mask, is no scale for these
    return relative_error(left[differ], right[differ]) <= 16 * torch.finfo(left.dtype).eps
