"""A model as a graph of operators without views and writes, with its state as inputs.

What the second pass says of a tensor is then said once: nothing changes it later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import get_decompositions
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from fxrebasin.errors import FxRebasinError
from fxrebasin.gather import identity_of
from fxrebasin.passes.kinds.origins import CalledAt, Places
from fxrebasin.passes.kinds.writing import Writer, looks_at_data
from fxrebasin.passes.propagate.model_state import Held, held_tensors
from fxrebasin.running.messages import first_lines, out_of_memory
from fxrebasin.running.outputs import Wanted, counted, reduced
from fxrebasin.running.preserve import preserve
from fxrebasin.running.switches import TRACING, no_warnings

_aten = torch.ops.aten

_TAKEN_APART = (
    *(_aten.addmv, _aten.baddbmm, _aten.linear, _aten.addcmul, _aten.rsub),
    *(_aten.native_layer_norm, _aten._fused_rms_norm, _aten.t),
    *(_aten.native_batch_norm, _aten._native_batch_norm_legit_no_training),
)
"""Operators that are seen as those that they are made of."""
_LITERALS = frozenset({_aten.lift_fresh.default, _aten.lift_fresh_copy.default})
"""Operators by which torch makes tensors of literals."""


@dataclass(frozen=True, eq=False)
class FunctionalGraph:
    """Operators of one call of a model.

    Attributes:
        nodes: in the order in which they run.
        state: the node of each parameter and buffer, by name; tied ones once.
        outputs: the nodes of the outputs that count.
        from_inputs: the nodes that depend on inputs of the model.
        values: of state tensors and of constants, by node.
        given: example values of inputs, by node.
        parameters: names of the state that are no buffers.
        statistics: names of the state that training takes of data.
        places: where in the model each operator was called.
    """

    nodes: tuple[fx.Node, ...]
    state: Mapping[str, fx.Node]
    outputs: tuple[fx.Node, ...]
    from_inputs: frozenset[fx.Node]
    values: Mapping[fx.Node, Tensor]
    given: Mapping[fx.Node, Tensor] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()
    places: Mapping[fx.Node, CalledAt] = field(default_factory=dict)

    @cached_property
    def order(self) -> Mapping[fx.Node, int]:
        """When each node runs."""
        return {node: number for number, node in enumerate(self.nodes)}

    @cached_property
    def shapes(self) -> Mapping[str, Tensor]:
        """The state without data."""
        return {
            name: torch.empty(tuple(int(size) for size in node.meta["val"].shape), device="meta")
            for name, node in self.state.items()
        }

    @cached_property
    def of_statistics(self) -> frozenset[fx.Node]:
        """What is worked out of statistics, and does not depend on inputs of the model."""
        start = [node for name, node in self.state.items() if name in self.statistics]
        return frozenset(_reached(self.nodes, start) - self.from_inputs)

    def constant(self, node: fx.Node) -> Tensor | None:
        """The value of a node that is the same whatever the state and the inputs are.

        Args:
            node: any; None comes back where it is not known to be such a one.
        """
        while node.target in _LITERALS:
            node = node.all_input_nodes[0]
        value = None if node.op != "get_attr" else self.values.get(node)
        return None if value is None or value.is_meta else value

    def downstream(self, start: Iterable[fx.Node]) -> Downstream:
        """Operators behind some nodes, in order.

        Args:
            start: nodes whose results are of interest.
        """
        return Downstream(self.order, start)


class Downstream:
    """Goes through the operators behind some nodes, and no others; each once, in order."""

    def __init__(self, order: Mapping[fx.Node, int], start: Iterable[fx.Node]) -> None:
        self._order = order
        self._seen: set[fx.Node] = set()
        self._next: list[tuple[int, fx.Node]] = []
        for node in start:
            self.go_on(node)

    def go_on(self, node: fx.Node) -> None:
        """What reads a node is looked at as well.

        Args:
            node: not behind those that were looked at already.
        """
        for user in node.users:
            if user.op == "call_function" and user not in self._seen:
                self._seen.add(user)
                heappush(self._next, (self._order[user], user))

    def __iter__(self) -> Iterator[fx.Node]:
        while self._next:
            yield heappop(self._next)[1]


def functional_graph(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: Wanted
) -> FunctionalGraph | str:
    """The graph of one call of a model in eval mode, or why there is none, in words.

    Args:
        model: it is left as it was.
        args: positional inputs.
        kwargs: keyword inputs.
        wanted: which outputs count.
    """
    found: FunctionalGraph | str = ""
    for with_data in (False, True) if _has_data(model) else (False,):
        try:
            with preserve(model), _quiet(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
                return _traced(model, args, kwargs, wanted, with_data=with_data)
        except Exception as error:  # whatever a model raises that looks at its data
            if out_of_memory(error):
                raise
            found = found or first_lines(error)
    return found


def _has_data(model: nn.Module) -> bool:
    """Whether all of the state has values, so that the model can really run."""
    return not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def _traced(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    wanted: Wanted,
    *,
    with_data: bool,
) -> FunctionalGraph:
    """The graph, of a run without data or of a real one, in which inputs may decide branches.

    Raises:
        FxRebasinError: something that depends on weights decided one.
    """
    held = held_tensors(model)
    if shared := next((item for item in held if item.overlaps), None):
        raise FxRebasinError(f"{shared.name} and {shared.overlaps} share memory, in two views")
    state = {item.name: item.tensor for item in held}
    leaves, form = tree_flatten((tuple(args), dict(kwargs)))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    writer = Writer(_taken_apart(), with_data=with_data)
    places_of = Places(model, writer.graph)

    def call(own_state: dict[str, Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        own = list(leaves)
        for place, tensor in zip(places, given, strict=True):
            own[place] = tensor
        positional, named = tree_unflatten(own, form)
        with places_of.watch():
            returned = functional_call(model, own_state, positional, named)
        return list(counted(reduced(model, returned, wanted), wanted).values())

    stand_ins = {name: writer.input(tensor) for name, tensor in state.items()}
    inputs = [writer.input(leaves[place]) for place in places]
    with writer.writing():
        writer.end(call({n: stand_ins[item.name] for item in held for n in item.names}, inputs))
    _refuse_other_ways(writer.constants.values(), held)
    if with_data:
        _refuse_choices_by_weights(writer.graph, len(state))
    writer.graph.eliminate_dead_code()
    nodes = tuple(writer.graph.nodes)
    given = [node for node in nodes if node.op == "placeholder"]
    names = dict(zip(state, given, strict=False))
    [returned] = [node for node in nodes if node.op == "output"]
    outputs = tuple(item for item in _flat(returned.args) if isinstance(item, fx.Node))
    values = {node: state[name].detach() for name, node in names.items()} | writer.constants
    examples = (leaves[place].detach() for place in places)
    own = dict(zip(given[len(state) :], examples, strict=True))
    parameters = frozenset(name for name, _ in model.named_parameters() if name in state)
    reached = _reached(nodes, list(own))
    taken = _behind(writer.statistics)
    return FunctionalGraph(
        nodes,
        names,
        outputs,
        reached,
        values,
        own,
        parameters,
        frozenset(name for name, node in names.items() if node in taken),
        places_of.found,
    )


def _refuse_other_ways(constants: Iterable[Tensor], held: Sequence[Held]) -> None:
    """What a model holds has to be read as that, and not through a list or a closure, too.

    Args:
        constants: tensors that no operator made.
        held: the state.
    """
    names = {_memory(item.tensor): item.name for item in held}
    for tensor in constants:
        if name := names.get(_memory(tensor)):
            raise FxRebasinError(f"the model reads {name} by another way than its name")


def _memory(tensor: Tensor) -> object:
    """Equal for tensors in one memory."""
    identity = identity_of(tensor)
    return identity[0] if isinstance(identity, tuple) else identity


def _refuse_choices_by_weights(graph: fx.Graph, count: int) -> None:
    """What Python learnt from tensors may depend on inputs and constants only.

    Args:
        graph: with everything that was called.
        count: how many of the first inputs of the graph are the model's state.
    """
    nodes = tuple(graph.nodes)
    by_weights = _reached(nodes, [node for node in nodes if node.op == "placeholder"][:count])
    if any(node in by_weights and looks_at_data(node.target) for node in nodes):
        raise FxRebasinError("what the model does depends on values that it computes")


@cache
def _taken_apart() -> dict[Any, Any]:
    """What operators are made of that are seen as that."""
    return get_decompositions(_TAKEN_APART) | {
        _aten.addmm.default: _added_product,
        _aten.native_group_norm.default: _norm_of_groups,
    }


def _added_product(
    added: Tensor, one: Tensor, two: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """A product and a bias, without the multiplications by one that a library writes."""
    product = torch.mm(one, two)
    product = product if alpha == 1 else product * alpha
    return product + (added if beta == 1 else added * beta)


def _norm_of_groups(
    value: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    places: int,
    groups: int,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A norm over the channels of each group, at all places."""
    split = value.reshape(batch, groups, channels // groups, places)
    variance, mean = torch.var_mean(split, [2, 3], correction=0, keepdim=True)
    size = torch.rsqrt(variance + epsilon)
    found = ((split - mean) * size).reshape(value.shape)
    along = [channels] + [1] * (value.dim() - 2)
    if weight is not None:
        found = found * weight.reshape(along)
    if bias is not None:
        found = found + bias.reshape(along)
    return found, mean.reshape(batch, groups), size.reshape(batch, groups)


def _flat(found: Any) -> list[Any]:
    flat, _ = tree_flatten(found)
    return flat


def _reached(nodes: Sequence[fx.Node], start: Sequence[fx.Node]) -> frozenset[fx.Node]:
    found = set(start)
    for node in nodes:
        if found & set(node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def _behind(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that some nodes are made of, themselves included."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs and warns of while it traces."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with TRACING, no_warnings():
            yield
    finally:
        logger.setLevel(level)
