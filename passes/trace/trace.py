"""From a model to a graph: torch.fx first, torch.export when that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from keyword import iskeyword
from operator import attrgetter
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from fxrebasin.errors import InputError, TraceError
from fxrebasin.models.checks import unwrap
from fxrebasin.models.example_inputs import check_inputs
from fxrebasin.passes.trace.exported import exported_graph, has_open_axis
from fxrebasin.passes.trace.from_state import OtherWays, read_from_state
from fxrebasin.passes.trace.graph_state import carry_state, named_state
from fxrebasin.passes.trace.symbolic import symbolic_graph
from fxrebasin.running.apart import relative_error
from fxrebasin.running.dry_run import DryRun, dry_run
from fxrebasin.running.given import Given, remade
from fxrebasin.running.graph_outputs import for_graph
from fxrebasin.running.messages import attempt, describe, describe_call, first_lines, module_path
from fxrebasin.running.outputs import REDUCED_KEY, Wanted, counted, reduced
from fxrebasin.running.preserve import preserve
from fxrebasin.running.randomness import OwnNumbers, python_numbers, seed_in_python
from fxrebasin.running.subclasses import like
from fxrebasin.running.switches import no_warnings
from fxrebasin.wording import spoken

_Trace: TypeAlias = Callable[..., fx.GraphModule]


@dataclass(frozen=True)
class TraceResult:
    """A graph of a model.

    `graph_module` holds the parameters and buffers of the model themselves, under the same names,
    and some of its submodules: run it inside `preserve`. `notes` says in words what limits the
    graph, and `tried` which tracers made none, and why. `any_batch` is False if it is made for the
    batch size of the example inputs only.
    """

    graph_module: fx.GraphModule
    tracer: Literal["fx", "export", "given"]
    notes: tuple[str, ...] = ()
    any_batch: bool = True
    tried: tuple[str, ...] = ()


def trace(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    wanted: Wanted = None,
    check: bool = True,
) -> TraceResult:
    """Trace a call of `model` in eval mode, and make sure that the graph computes the same.

    torch.fx is tried first, then torch.export with an open batch axis, then torch.export with
    the shapes of the example. A graph counts when it applies the same operators to the same
    parameters, buffers and values as the model does; where that cannot be seen on meta tensors
    or is not so, when its outputs are the same with all parameters and buffers disturbed, so that
    a graph into which a value of the state was folded does not pass. A GraphModule is returned
    as it is.

    The graph returns the outputs that count, in the containers that the model returns, with None
    in the places of others and of caches. Where they are in objects that no graph returns, it
    returns a dict of them by the names that `verify` prints; where a function says what counts,
    what that function returns. What the model puts into dicts, lists and objects that are passed
    in, a graph of torch.fx puts there, too.

    Args:
        model: the model, left as it is; wrappers of torch.compile and DataParallel are taken off.
        args: positional inputs.
        kwargs: keyword inputs.
        wanted: which outputs count; see `fxrebasin.running.outputs`.
        check: run model and graph to compare them; otherwise what a tracer returns is trusted.

    Raises:
        InputError: the model is scripted, does not run on these inputs, or has no such outputs.
        TraceError: no tracer makes a graph that computes what the model computes.

    Example:
        >>> result = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (torch.zeros(2, 3),))
        >>> result.tracer, [node.name for node in result.graph_module.graph.nodes]
        ('fx', ['input_1', '_0', '_1', 'output'])
    """
    model, kwargs = unwrap(model), dict(kwargs or {})
    call = _Call(model, args, kwargs, wanted)
    expected = check_inputs(model, args, kwargs, wanted) if check else None
    if expected is not None:
        expected.outputs(wanted)
    if isinstance(model, fx.GraphModule):
        return TraceResult(model, "given")
    put = expected.put(wanted) if expected is not None else ()
    if taken := _names_of_graph_modules(model):
        names = ", ".join(taken)
        reasons = [f"graphs have something else of this name, change it in the model: {names}"]
        raise _untraceable(model, args, kwargs, reasons, looks_at_data=check and expected is None)
    reasons = []
    for label, tracer, tracing in _TRACERS:
        if put and tracer == "export":
            reasons.append(f"{label} is of no use: {_unfilled(put)}")
            continue
        notes: dict[str, None] = {}
        result = _try(tracing, call, notes, objects=tracer == "fx")
        if not isinstance(result, str):
            graph_module, read = result
            problem = _difference(call, graph_module, expected, read) if check else None
            if problem is None:
                open_batch = tracer == "fx" or has_open_axis(graph_module)
                fixed = () if open_batch else (_FIXED,)
                return TraceResult(
                    graph_module, tracer, (*notes, *fixed), open_batch, tuple(reasons)
                )
            result = f"made a wrong graph: {problem}"
        reasons.append(f"{label} {result}")
    if keywords := _keywords(model):
        names = ", ".join(keywords)
        text = f"graphs are written in Python, and these have keywords for names: {names}"
        reasons.insert(0, text)
    raise _untraceable(model, args, kwargs, reasons, looks_at_data=check and expected is None)


_TRACERS: tuple[tuple[str, Literal["fx", "export"], _Trace], ...] = (
    ("torch.fx", "fx", symbolic_graph),
    ("torch.export with an open batch axis", "export", exported_graph),
    ("torch.export", "export", partial(exported_graph, dynamic_batch=False)),
)


_DRAWS = 8
"""How often a model that draws random numbers is compared with a graph: masks may be alike once."""

_FIXED = "the graph is for the batch size of the example inputs only"


def _unfilled(put: Sequence[str]) -> str:
    """What to do about outputs that a graph cannot put into what is passed in."""
    return (
        f"its graphs do not fill what is passed in ({', '.join(put)}); let forward return that, or "
        f"leave it out by saying with {spoken('outputs=', '--outputs')} which outputs count"
    )


def _names_of_graph_modules(model: nn.Module) -> list[str]:
    """What of the model a graph cannot hold under its name, since its class has that name.

    It would be `code`, `graph`, `meta`, and what torch keeps for itself.
    """
    taken = set(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - set(dir(nn.Module()))
    children = (name for name, child in model._modules.items() if child is not None)
    return sorted(taken.intersection((*children, *named_state(model))))


def _keywords(model: nn.Module) -> list[str]:
    """Paths of modules, parameters and buffers to which no Python code leads."""
    paths = (*dict(model.named_modules()), *named_state(model))
    return [path for path in paths if iskeyword(path.rpartition(".")[2])][:5]


@dataclass(frozen=True)
class _Call:
    """A call of a model, and which of its outputs count."""

    model: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    wanted: Wanted

    def own_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the inputs, which a model may write to."""
        values = (tuple(self.args), dict(self.kwargs))
        args, kwargs = remade(values, lambda tensor: tensor.detach().clone())
        return args, kwargs


def _try(
    tracing: _Trace, call: _Call, notes: dict[str, None], *, objects: bool
) -> tuple[fx.GraphModule, frozenset[str]] | str:
    """The graph, with what it reads of the state by name and the model does not; or why not.

    Args:
        tracing: makes it.
        call: of the model.
        notes: on what it returns, are added.
        objects: whether the tracer takes objects for outputs and fills those of the inputs.
    """
    model, wanted = call.model, call.wanted
    filled = {"wanted": wanted} if objects else {}
    made: list[fx.GraphModule] = []
    ways: list[OtherWays] = []

    def finish(returned: Any) -> Any:
        result, found = for_graph(reduced(model, returned, wanted), wanted, objects=objects)
        notes.update(dict.fromkeys(found))
        return result

    def run() -> None:
        args, kwargs = call.own_inputs()  # a model that fills containers puts proxies there
        graph_module = tracing(model, args, kwargs, finish, **filled)
        carry_state(graph_module, model)
        ways.append(read_from_state(graph_module, model))
        if callable(wanted):
            graph_module.meta[REDUCED_KEY] = True
        made.append(graph_module)

    with preserve(model), no_warnings():
        error = attempt(run)
    if error is not None:
        path = module_path(model, error)
        return f"failed{f' in {path!r}' if path else ''}: {first_lines(error)}"
    if list(model.state_dict()) != list(made[0].state_dict()):
        return "made a graph whose state dict has other keys than the model's"
    if unknown := ways[0].unknown:
        return f"made a graph that reads {', '.join(sorted(unknown))} by another way than the name"
    if held := _objects_of(made[0]):
        return f"made a graph that holds {', '.join(held)}, which changes from call to call"
    return made[0], ways[0].read


def _objects_of(graph_module: fx.GraphModule) -> list[str]:
    """Kinds of what a graph reads besides modules and tensors: a random generator, say."""
    reads = (node.target for node in graph_module.graph.nodes if node.op == "get_attr")
    values = [attrgetter(str(target))(graph_module) for target in dict.fromkeys(reads)]
    others = [value for value in values if not isinstance(value, torch.Tensor | nn.Module)]
    return list(dict.fromkeys(f"a {type(value).__name__}" for value in others))


def _difference(
    call: _Call, graph_module: fx.GraphModule, expected: DryRun | None, still: frozenset[str]
) -> str | None:
    """What tells the graph from the model; None if they compute the same.

    Args:
        call: of the model.
        graph_module: of it.
        expected: the operators that the model applies, if these could be seen.
        still: names of what only the graph reads by name, so that other numbers would reach it
            alone.
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
    if any(parameter.is_meta for parameter in call.model.parameters()):
        return None if error is None else first_lines(error)
    seeds = range(1, 1 + (_DRAWS if expected is not None and expected.draws else 1))
    differences = (
        _numeric_difference(call, graph_module, seed, in_python, still) for seed in seeds
    )
    return next((found for found in differences if found is not None), None)


def _draws_in_python(call: _Call) -> bool:
    """Whether a model takes numbers from Python's generator or numpy's, which threads share.

    They are begun anew for no other model.
    """
    args, kwargs = call.own_inputs()
    with preserve(call.model), torch.no_grad():
        numbers = python_numbers()
        attempt(lambda: call.model(*args, **kwargs))
        return python_numbers() != numbers


def _numeric_difference(
    call: _Call,
    graph_module: fx.GraphModule,
    seed: int,
    in_python: bool,
    still: frozenset[str] = frozenset(),
) -> str | None:
    """What tells the graph from the model with other weights.

    Args:
        call: of the model.
        graph_module: of it.
        seed: of random numbers: another one than that of which a graph was made, since it may have
            folded what was drawn.
        in_python: whether numbers of Python and numpy are among these.
        still: names of the weights that stay as they are.
    """
    outputs: list[dict[str, torch.Tensor]] = []
    for module in (call.model, graph_module):

        def run(module: nn.Module = module) -> None:
            state = _disturbed(named_state(call.model), still)  # of its own, to which it may write
            outputs.append(_outputs(module, state, call, seed, in_python))

        error = attempt(run)
        if isinstance(error, InputError):  # the outputs are refused, or there are none of the names
            raise error
        if error is not None:
            return f"with other weights it raises {first_lines(error)}"
    wanted, got = outputs
    if list(wanted) != list(got):
        lost = [name for name in wanted if name.startswith("inputs.") and name not in got]
        more = f"; {_unfilled(lost)}" if lost else ""
        return f"its outputs are {', '.join(got) or 'none'}, the model's {', '.join(wanted)}{more}"
    for name, left in wanted.items():
        if not _agree(left, got[name]):
            return f"{name} ({describe(got[name])}) differs from the model's ({describe(left)})"
    return None


def _outputs(
    module: nn.Module, state: dict[str, torch.Tensor], call: _Call, seed: int, in_python: bool
) -> dict[str, torch.Tensor]:
    args, kwargs = call.own_inputs()
    given = Given(args, kwargs, values=True)
    with preserve(module, OwnNumbers(seed)):
        if in_python:
            seed_in_python(seed)
        returned = torch.func.functional_call(module, state, args, kwargs)
        returned = reduced(module, returned, call.wanted)
        return counted(returned, call.wanted, given, strict=module is call.model)


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


def _untraceable(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    reasons: Sequence[str],
    looks_at_data: bool,
) -> TraceError:
    tried = "\n".join(f"  {reason}" for reason in reasons)
    weights = (
        "and the model looks at data, so that what it does with other inputs was not seen: read "
        "the notes of `fxrebasin.analyze` before its weights are permuted in any other way."
        if looks_at_data
        else "but the permuted weights are available: load "
        "`permutation.permute_state_dict(model.state_dict())` into the model's class."
    )
    return TraceError(
        f"no tracer makes a graph of {describe_call(model, args, kwargs)}:\n{tried}\n"
        f"Without a graph there is nothing to rewrite or export, {weights}"
    )
