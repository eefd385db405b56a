"""Whether a graph of torch.export is the model on other sizes of the axes that it has open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from fxrebasin.errors import InputError
from fxrebasin.models.example_inputs import check_inputs
from fxrebasin.models.input_names import named_inputs
from fxrebasin.passes.trace.comparing import Call, difference, fault_of
from fxrebasin.passes.trace.made_for import MadeFor, made_for, note_sizes, with_sizes
from fxrebasin.passes.trace.opening import objection_of
from fxrebasin.passes.trace.other_sizes import OtherSizes
from fxrebasin.running.dry_run import DryRun
from fxrebasin.running.messages import attempt, describe_call, first_lines


def difference_elsewhere(call: Call, graph_module: fx.GraphModule) -> str | None:
    """What tells the graph from the model on other sizes of axes that it has open.

    Where just the batch is open, only those are tried that PyTorch relied on not being there: a few
    others are left to who compares the two in numbers.

    Args:
        call: of the model.
        graph_module: of it, by torch.export in this process; compared on the call itself.
    """
    made = made_for(graph_module)
    if made is None or not made.open:
        return None

    also: list[Mapping[str, int]] = []

    def compared(sizes: Mapping[str, int]) -> str | None:
        """What is different, "" if nothing is, and None if the model does not take such inputs."""
        args, kwargs = with_sizes(graph_module, call.args, call.kwargs, sizes)
        other = replace(call, args=args, kwargs=kwargs)
        found: list[DryRun | None] = []
        error = attempt(lambda: found.append(_checked(other)))
        if error is not None:
            return None
        problem = difference(other, graph_module, found[0], None)
        if problem is None:
            also.append(sizes)
            return ""
        if fault_of(other) is not None:
            return None
        return f"for {describe_call(other.model, other.args, other.kwargs)}: {problem}"

    names = list(named_inputs(graph_module, call.args, call.kwargs))
    known, batch = _sizes(call, graph_module, made), made.open.get((names[0], 0))
    try:
        objection = objection_of(graph_module, made.open, names)
        others = OtherSizes(known, batch, objection, compared)
        problem = next(filter(None, others.found()), None)
    except InputError as error:
        return first_lines(error)
    note_sizes(graph_module, replace(made, also=also[0] if also else {}))
    return problem


def _checked(call: Call) -> DryRun | None:
    return check_inputs(call.model, call.args, call.kwargs, call.wanted)


def _sizes(call: Call, graph_module: fx.GraphModule, made: MadeFor) -> dict[str, int]:
    """Those of the example, by what stands for them."""
    names = named_inputs(graph_module, call.args, call.kwargs)
    return {label: int(names[name].shape[axis]) for (name, axis), label in made.open.items()}
