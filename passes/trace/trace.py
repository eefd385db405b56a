"""From a model to a graph: torch.fx first, torch.export when that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from keyword import iskeyword
from operator import attrgetter
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from fxrebasin.errors import TraceError
from fxrebasin.models.checks import unwrap
from fxrebasin.models.example_inputs import check_inputs
from fxrebasin.models.input_names import named_inputs
from fxrebasin.passes.trace.comparing import Call, difference, unfilled
from fxrebasin.passes.trace.elsewhere import difference_elsewhere
from fxrebasin.passes.trace.exported import exported_graph
from fxrebasin.passes.trace.from_state import OtherWays, read_from_state
from fxrebasin.passes.trace.graph_state import carry_state, named_state
from fxrebasin.passes.trace.made_for import has_open_batch, note_closed
from fxrebasin.passes.trace.opening import (
    Axes,
    batch_axes,
    no_axes,
    token_axes,
)
from fxrebasin.passes.trace.symbolic import symbolic_graph
from fxrebasin.running.graph_outputs import for_graph
from fxrebasin.running.messages import attempt, describe_call, first_lines, module_path
from fxrebasin.running.outputs import REDUCED_KEY, Wanted, reduced
from fxrebasin.running.preserve import preserve
from fxrebasin.running.switches import no_warnings

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

    torch.fx is tried first, then torch.export with open axes: the batch and sequences of tokens,
    then the batch, then none. A graph counts when it applies the same operators to the same
    parameters, buffers and values as the model does; where that cannot be seen on meta tensors
    or is not so, when its outputs are the same with all parameters and buffers disturbed, so that
    a graph into which a value of the state was folded does not pass. One with open axes besides
    the batch is compared with the model on other sizes as well. A GraphModule is returned as it is.

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
    call = Call(model, args, kwargs, wanted)
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
    for label, tracer, tracing in _tracers(args, kwargs):
        if put and tracer == "export":
            reasons.append(f"{label} is of no use: {unfilled(put)}")
            continue
        notes: dict[str, None] = {}
        result = _try(tracing, call, notes, objects=tracer == "fx")
        if not isinstance(result, str):
            graph_module, read = result
            problem = difference(call, graph_module, expected, read) if check else None
            if problem is None and check and tracer == "export":
                problem = difference_elsewhere(call, graph_module)
            if problem is None:
                if tracer == "export":
                    _note_closed(graph_module, args, kwargs, reasons[1:])
                open_batch = tracer == "fx" or has_open_batch(graph_module, args, kwargs)
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


def _note_closed(
    graph_module: fx.GraphModule,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    reasons: Sequence[str],
) -> None:
    """Note of the axes that an earlier graph had open why this one has not."""
    if reasons:
        names = named_inputs(graph_module, args, kwargs)
        axes = zip(names, token_axes(args, kwargs), strict=True)
        places = [(name, axis) for name, own in axes for axis in own]
        note_closed(graph_module, places, reasons[-1].splitlines()[0])


def _tracers(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Literal["fx", "export"], _Trace]]:
    """What is tried, in order; of torch.export with fewer and fewer axes open."""
    yield "torch.fx", "fx", symbolic_graph
    found: list[tuple[Axes, str, Callable[..., Axes]]] = []
    for label, choice in _OPENINGS:
        axes = choice(args, kwargs)
        found = [item for item in found if item[0] != axes] + [(axes, label, choice)]
    for _, label, choice in found:
        yield label, "export", partial(exported_graph, axes=choice)


_OPENINGS: tuple[tuple[str, Callable[..., Axes]], ...] = (
    ("torch.export with open sequences", token_axes),
    ("torch.export with an open batch axis", batch_axes),
    ("torch.export", no_axes),
)
"""Of axes, from most to none; of those that open the same the last label says it best."""


_FIXED = "the graph is for the batch size of the example inputs only"


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


def _try(
    tracing: _Trace, call: Call, notes: dict[str, None], *, objects: bool
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
