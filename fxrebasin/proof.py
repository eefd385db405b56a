"""Proof that a permuted model is what it should be, and computes what it computed before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from fxrebasin.alignment import Alignment, Certificate, applied_exactly
from fxrebasin.errors import EquivalenceError, InputError
from fxrebasin.exporters.verify.bits import compare_bits
from fxrebasin.exporters.verify.equivalence import compare_float64, compare_states
from fxrebasin.exporters.verify.input_sets import InputSet, example_set, first_rows
from fxrebasin.exporters.verify.runs import MadeWhenAsked, Subject, fault_of, run_float64
from fxrebasin.gather import storage_identity
from fxrebasin.models.input_names import named_inputs
from fxrebasin.passes.trace.graph_state import copy_with_state, named_state
from fxrebasin.passes.trace.made_for import MadeFor, made_for, note_sizes, with_sizes
from fxrebasin.passes.trace.trace import TraceResult
from fxrebasin.permutation import Permutation
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.running.outputs import Wanted
from fxrebasin.wording import spoken


class Proof(Enum):
    """How much of a result is proved."""

    NONE = "none"
    EXACT = "exact"
    RUN = "run"


def proof_of(verify: bool | str) -> Proof:
    """What a caller asked for.

    Args:
        verify: `True`, `False` or `"exact"`.

    Raises:
        InputError: it is something else.

    Example:
        >>> proof_of("exact"), proof_of(True)
        (<Proof.EXACT: 'exact'>, <Proof.RUN: 'run'>)
    """
    if isinstance(verify, bool):
        return Proof.RUN if verify else Proof.NONE
    if verify != Proof.EXACT.value:
        raise InputError(f"verify={verify!r}; expected True, False or 'exact'")
    return Proof.EXACT


def prove_bits(
    state: Mapping[str, torch.Tensor],
    moved: Mapping[str, torch.Tensor],
    certificate: Certificate,
    also_named: Mapping[str, str] = MappingProxyType({}),
) -> EquivalenceReport:
    """Compare a permuted state with what a permutation makes of the state, bit for bit.

    One pass over memory, one tensor at a time. It shows that the result is the permutation's, not
    that the permutation leaves the function as it is.

    Args:
        state: by name.
        moved: the result, by the same names.
        certificate: of the state.
        also_named: the name in the certificate of tensors that it does not name.

    Raises:
        EquivalenceError: tensors are missing, or others than they should be.
        InputError: the certificate computes with numbers, which are rounded.

    Example:
        >>> import fxrebasin
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> order = fxrebasin.analyze(net).random(seed=0)
        >>> moved = order.permute_state_dict(net.state_dict())
        >>> prove_bits(net.state_dict(), moved, order).passed
        True
    """
    if not isinstance(certificate, Permutation):
        raise InputError(
            "verify='exact' compares bits, and an alignment computes with numbers that are rounded;"
            " pass verify=True"
        )
    if state.keys() != moved.keys():
        other = sorted(state.keys() ^ moved.keys())
        raise EquivalenceError(f"the result has other tensors than the model: {', '.join(other)}")
    report = compare_bits(
        (name, certificate.permute_tensor(also_named.get(name, name), tensor), moved[name])
        for name, tensor in state.items()
    )
    report.raise_if_failed()
    return report


def _captured(state: Mapping[str, torch.Tensor], permutation: Permutation) -> dict[str, str]:
    """Constants that a graph made of parameters and buffers: one memory has one content."""
    names = {storage_identity(state[name]): name for name in permutation.layout if name in state}
    return {
        name: names[storage_identity(tensor)]
        for name, tensor in state.items()
        if name not in permutation.layout and storage_identity(tensor) in names
    }


def _what_now() -> str:
    python = "; verify=False returns the permutation all the same, to look at but not to use"
    return (
        "The symmetry does not hold for this model. Please report it with the model's "
        f"forward{spoken(python, '')}."
    )


def prove_state(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    permutation: Certificate,
    inputs: tuple[tuple[Any, ...], Mapping[str, Any]],
    wanted: Wanted = None,
    label: str = "the model",
) -> EquivalenceReport | None:
    """Compare in float64 what a module computes with a state, and with that state permuted.

    Takes two forward passes of one row of the example and two of three other rows, and memory for
    parts of a float64 copy of the module. Nothing is traced.

    Args:
        model: of the architecture.
        state: its parameters and buffers by name.
        permutation: of the state, or an alignment.
        inputs: positional and keyword inputs.
        wanted: which outputs count; see `fxrebasin.running.outputs`.
        label: what messages call the model with this state.

    Returns:
        What the comparison found; None if no unit moves, so that there is nothing to compare.

    Raises:
        EquivalenceError: the outputs differ.
        InputError: the module does not run in float64 on these inputs.

    Example:
        >>> import fxrebasin
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> order = fxrebasin.analyze(net).random(seed=0)
        >>> prove_state(net, net.state_dict(), order, ((torch.ones(1, 2),), {})).passed
        True
    """
    moved: Mapping[str, torch.Tensor]
    if not isinstance(permutation, Permutation):
        moved = applied_exactly(permutation, state)
    elif permutation.is_identity:
        return None
    else:
        permutation.check_fits(state)
        moved = MadeWhenAsked(state, permutation.permute_tensor)
    report = compare_states(model, state, moved, *inputs, wanted, label=label, few=1)
    if report.passed:
        return report
    (own,) = run_float64(Subject(model, state, label, wanted), [example_set(*inputs)])
    if not isinstance(own, Exception) and fault_of(own) is not None:
        raise EquivalenceError(
            f"{label} computes NaN as it is, so that nothing shows whether it computes the same "
            f"with its units permuted\n{report.table()}"
        )
    raise EquivalenceError(
        f"{label} does not compute the same with its units permuted: {report}\n"
        f"{report.table()}\n{_what_now()}"
    )


def prove_graph(
    model: nn.Module,
    traced: TraceResult,
    result: fx.GraphModule,
    permutation: Certificate,
    inputs: tuple[tuple[Any, ...], Mapping[str, Any]],
    wanted: Wanted = None,
) -> EquivalenceReport:
    """Compare in float64 what a module computes, and what its permuted graph does.

    A graph with open axes besides the batch is compared on other sizes of these as well: a
    permutation that was found on a single word need not hold for several.

    A graph may be right for the batch size that it was traced with and for no other, which is not
    the permutation's fault. Then the permuted state is compared on other sizes instead, the report
    has a note, and the graph is marked as one for the sizes of the example. That all tensors of the
    graph are the model's, permuted, is shown bit for bit (`prove_bits`), so that a few rows are
    enough. What an alignment makes is compared before it is rounded.

    Args:
        model: the module.
        traced: its graph.
        result: the graph with permuted weights.
        permutation: of the weights.
        inputs: positional and keyword inputs.
        wanted: which outputs count; see `fxrebasin.running.outputs`.

    Raises:
        EquivalenceError: the outputs differ.
        InputError: module or graph do not run in float64 on these inputs.
    """
    graph = result
    if isinstance(permutation, Alignment) and not permutation.at_most_signed:
        exact = applied_exactly(permutation, named_state(traced.graph_module))
        result = copy_with_state(result, {**named_state(result), **exact})
    elif isinstance(permutation, Permutation):
        state = named_state(traced.graph_module)
        prove_bits(state, named_state(result), permutation, _captured(state, permutation))
    few = 0
    if isinstance(permutation, Permutation):
        few = 1 if traced.tracer == "fx" else 2  # programs of torch.export may refuse a single row
    further = _of_other_sizes(traced.graph_module, *inputs)
    report = compare_float64(
        model, result, *inputs, wanted, any_batch=traced.any_batch, few=few, further=further
    )
    if not report.passed and (traced.any_batch or further):
        narrow = compare_float64(model, result, *inputs, wanted, any_batch=False)
        if narrow.passed:
            prove_state(model, named_state(model), permutation, inputs, wanted)
            for one in further:
                sizes = (one.args, one.kwargs)
                prove_state(model, named_state(model), permutation, sizes, wanted, one.label)
            note_sizes(graph, _closed(graph, *inputs))
            report = replace(narrow, notes=(*narrow.notes, _ELSEWHERE))
    report.raise_if_failed()
    return report


_ELSEWHERE = "the graph computes something else than the model for other batch sizes"


def _closed(graph: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MadeFor:
    """That a graph is for the sizes of the example only."""
    names = named_inputs(graph, args, kwargs)
    places = [(name, axis) for name, tensor in names.items() for axis in range(tensor.dim())]
    return MadeFor({}, dict.fromkeys(places, _ELSEWHERE))


def _of_other_sizes(
    graph_module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[InputSet]:
    """Two rows of other sizes of the axes that a graph has open besides the batch, if any."""
    made = made_for(graph_module)
    if made is None or not made.also:
        return []
    few = first_rows(example_set(args, kwargs), 2)
    rows = {label for (_, axis), label in made.open.items() if not axis}
    sizes = {label: size for label, size in made.also.items() if label not in rows}
    args, kwargs = with_sizes(graph_module, few.args, few.kwargs, sizes)
    return [InputSet("the model on inputs of other sizes", args, kwargs, False, few.batch)]
