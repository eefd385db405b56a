"""The few operators of a program that torch's ONNX exporter does not know, written with others.

`ExportedProgram.run_decompositions` traces the whole program twice; with sizes that are symbols
that is most of the time of an export. Most programs have a few kinds of operators that need it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from fxrebasin.exporters.onnx.attention import attention_of_four, is_attention_of_other_rank
from fxrebasin.exporters.onnx.recurrent import translations
from fxrebasin.running.messages import attempt
from fxrebasin.running.operators import viewed_by, writes

Table: TypeAlias = Mapping[Any, Callable[..., Any]]

_aten = torch.ops.aten

# They return nothing of use; the exporter takes them out.
_ASSERTIONS = frozenset(
    {
        _aten.sym_constrain_range_for_size.default,
        _aten._assert_async.default,
        _aten._assert_async.msg,
        _aten._assert_scalar.default,
        _aten._assert_tensor_metadata.default,
    }
)

# Composite operators may return their input (dropout does); these never do.
_MAKE_NEW = frozenset(
    getattr(_aten, name).default
    for name in ("conv1d", "conv2d", "conv3d", "linear", "batch_norm", "layer_norm", "group_norm")
)


@dataclass(frozen=True)
class Operators:
    """What an exporter can do with operators.

    Attributes:
        table: how operators are made of others.
        names: of those that are translated, unless they are in the table.
    """

    table: Table
    names: frozenset[str]

    def may_stay(self, target: Any) -> bool:
        """Whether there is nothing to do about a node that calls something."""
        if not isinstance(target, torch._ops.OperatorBase):
            return True  # arithmetic of sizes, and picking one of several results
        if not isinstance(target, torch._ops.OpOverload):
            return False  # control flow
        known = target.name() in self.names and target not in self.table
        return known or target in _ASSERTIONS


def lower(program: ExportedProgram, operators: Operators) -> bool:
    """Rewrite operators that are not known, in place, one by one.

    Operators that write to their operand become such that do not, where nothing else shows what is
    written to. The program is only changed if all of it can be.

    Args:
        program: of torch.export.
        operators: what may stay, and what the rest is made of.

    Returns:
        Whether that was possible; otherwise the whole program has to be traced.
    """
    graph = _copied(program.graph)
    work = _Work(graph, operators)
    for node in list(graph.nodes):
        if node.op == "get_attr":
            return False  # bodies of control flow
        if node.op != "call_function" or operators.may_stay(node.target):
            continue
        made = work.without_write(node) if _is_write(node.target) else node
        if made is not None and not operators.may_stay(made.target):
            made = work.expanded(made)
        if made is None:
            return False
    graph.eliminate_dead_code()
    if len(_modes(graph)) > 1:
        return False  # the exporter wants all values to be of one
    _adopt(program, graph)
    return True


def take_four_axes(program: ExportedProgram, operators: Operators) -> None:
    """Write attention over other axes than four as attention over four, in place.

    Args:
        program: of torch.export; left as it is if that is impossible.
        operators: see `lower`.
    """
    if not any(map(is_attention_of_other_rank, program.graph.nodes)):
        return
    graph = _copied(program.graph)
    work = _Work(graph, operators)
    nodes = list(filter(is_attention_of_other_rank, graph.nodes))
    written = all(work.expanded(node, attention_of_four) is not None for node in nodes)
    if written and len(_modes(graph)) == 1:
        _adopt(program, graph)


def _modes(graph: fx.Graph) -> set[int]:
    """What the values of a graph were made in, as numbers."""
    values = tree_leaves([node.meta.get("val") for node in graph.nodes])
    return {id(value.fake_mode) for value in values if isinstance(value, FakeTensor)}


def _copied(graph: fx.Graph) -> fx.Graph:
    """A copy, with the same names and what is known of each value."""
    copy = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    outputs = copy.graph_copy(graph, values)
    new = copy.output(outputs)
    new.meta = dict(graph.output_node().meta)
    copy._codegen = graph._codegen
    return copy


def _adopt(program: ExportedProgram, graph: fx.Graph) -> None:
    program.graph_module.graph = graph
    results: Any = graph.output_node().args[0]
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if isinstance(result, fx.Node):
            spec.arg.name = result.name


def _is_write(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and writes(target)


class _Work:
    """Rewrites nodes of a graph; what was found out about one holds for others like it."""

    def __init__(self, graph: fx.Graph, operators: Operators) -> None:
        self._graph, self._operators = graph, operators
        self._bodies: dict[Any, fx.GraphModule | None] = {}
        self._same_kind: dict[Any, bool] = {}

    def without_write(self, node: fx.Node) -> fx.Node | None:
        """A node that returns what another writes; None if somebody may look at it otherwise."""
        target: Any = node.target
        functional = _functional(target)
        operand = node.args[0] if node.args else None
        if functional is None or not isinstance(operand, fx.Node) or not _is_alone(node, operand):
            return None
        key = _key_of(node)
        if key not in self._same_kind:
            self._same_kind[key] = _returns_like(functional, node, operand)
        if not self._same_kind[key]:
            return None
        with self._graph.inserting_before(node):
            made = self._graph.call_function(functional, node.args, node.kwargs)
        made.meta.update(node.meta)
        after = set(_nodes_after(node))
        operand.replace_all_uses_with(made, delete_user_cb=lambda user: user in after)
        node.replace_all_uses_with(made)
        self._graph.erase_node(node)
        return made

    def expanded(self, node: fx.Node, function: Callable[..., Any] | None = None) -> fx.Node | None:
        """Put known operators in the place of one; None if that is impossible.

        Args:
            node: that calls an operator.
            function: that does the same, if it is not the operator itself that is taken apart.
        """
        key = _key_of(node)
        if key not in self._bodies:
            self._bodies[key] = _traced(node, self._operators, function)
        body = self._bodies[key]
        if body is None:
            return None
        placeholders = body.graph.find_nodes(op="placeholder")
        values = dict(zip(placeholders, _inputs(node), strict=True))
        kept = {k: node.meta[k] for k in ("nn_module_stack", "stack_trace") if k in node.meta}
        with self._graph.inserting_before(node):
            for one in body.graph.nodes:
                if one.op == "call_function":
                    values[one] = self._graph.node_copy(one, values.__getitem__)
                    values[one].meta.update(kept)
        result = tree_map(values.__getitem__, body.graph.output_node().args[0])
        return _put(self._graph, node, result)


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """`aten.relu` for `aten.relu_`: the same arguments, and it writes to none."""
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(_aten, name.removesuffix("_"), None) if namespace == "aten" else None
    if not name.endswith("_") or packet is None:
        return None
    if target._overloadname not in packet.overloads():
        return None
    found = getattr(packet, target._overloadname)
    kinds, own = ([str(a.real_type) for a in one._schema.arguments] for one in (found, target))
    return found if kinds == own and not writes(found) else None


def _is_alone(node: fx.Node, operand: fx.Node) -> bool:
    """Whether nothing but an operand shows its numbers to anybody after a node."""
    family = {operand, *_views_into(operand)}
    pending = list(family)
    while pending:
        for user in pending.pop().users:
            if user not in family and user is not node and _may_share(user):
                family |= {user, *_views_into(user)}
                pending += [user, *_views_into(user)]
    after = set(_nodes_after(node))
    return all(
        one.op == "call_function"
        and (one is operand or one in after or not any(user in after for user in one.users))
        for one in family
    )


def _views_into(node: fx.Node) -> list[fx.Node]:
    """All values whose numbers a node may show."""
    found: list[fx.Node] = []
    pending = [node]
    while pending:
        one = pending.pop()
        if one.op == "call_function" and _may_share(one):
            inputs = [n for n in one.all_input_nodes if n not in found]
            found += inputs
            pending += inputs
    return found


def _may_share(node: fx.Node) -> bool:
    """Whether what a node returns may be the numbers of one of its inputs."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    if viewed_by(target) or writes(target):
        return True
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        target.name(), "CompositeImplicitAutograd"
    )
    return composite and target not in _MAKE_NEW


def _nodes_after(node: fx.Node) -> Iterator[fx.Node]:
    one = node.next
    while one.op != "root":
        yield one
        one = one.next


def _returns_like(functional: Any, node: fx.Node, operand: fx.Node) -> bool:
    """Whether an operator returns the same kind of tensor as its operand is."""
    values: list[Any] = []

    def run() -> None:
        args, kwargs = tree_map(_value_of, (node.args, dict(node.kwargs)))
        with torch.no_grad():
            values.append(functional(*args, **kwargs))

    if attempt(run) is not None:
        return False
    known = operand.meta["val"]
    return bool(values[0].dtype == known.dtype and values[0].shape == known.shape)


def _value_of(value: Any) -> Any:
    return value.meta["val"] if isinstance(value, fx.Node) else value


def _put(graph: fx.Graph, node: fx.Node, result: Any) -> fx.Node | None:
    """Replace a node by what was computed in its place: a value, or several that are picked."""
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        return result
    for user in list(node.users):
        index = user.args[1] if len(user.args) > 1 else None
        if not isinstance(index, int) or not isinstance(result[index], fx.Node):
            return None
        user.replace_all_uses_with(result[index])
        graph.erase_node(user)
    graph.erase_node(node)
    first: fx.Node = next(one for one in result if isinstance(one, fx.Node))
    return first


def _traced(
    node: fx.Node, operators: Operators, function: Callable[..., Any] | None
) -> fx.GraphModule | None:
    target: Any = function or node.target
    inputs = _inputs(node)
    found: list[fx.GraphModule] = []

    def call(*given: Any) -> Any:
        values = dict(zip(inputs, given, strict=True))

        def fill(value: Any) -> Any:
            return values[value] if isinstance(value, fx.Node) else value

        return target(*tree_map(fill, node.args), **tree_map(fill, dict(node.kwargs)))

    def run() -> None:
        values = [_value_of(one) for one in inputs]
        with torch.no_grad(), detect_fake_mode(values) or nullcontext():
            # With a function of ours, the operators that it calls are to stay whole.
            table, whole = dict(operators.table), function is not None
            found.append(make_fx(call, decomposition_table=table, pre_dispatch=whole)(*values))

    if attempt(run) is not None:
        return None
    calls = [one for one in found[0].graph.nodes if one.op == "call_function"]
    plain = all(
        one.op in ("call_function", "placeholder", "output") for one in found[0].graph.nodes
    )
    fits = all(operators.may_stay(one.target) and not _is_write(one.target) for one in calls)
    return found[0] if plain and fits else None


def _inputs(node: fx.Node) -> Sequence[fx.Node]:
    leaves = tree_leaves((node.args, dict(node.kwargs)))
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node)))


def _key_of(node: fx.Node) -> Any:
    """Equal for nodes that are alike in all but the values of tensors."""
    leaves = tree_leaves((node.args, dict(node.kwargs)))
    inputs = _inputs(node)
    places = [inputs.index(leaf) if isinstance(leaf, fx.Node) else None for leaf in leaves]
    return node.target, tuple(node.kwargs), *places, *map(_kind_of, leaves)


def _kind_of(leaf: Any) -> Any:
    value = _value_of(leaf)
    if isinstance(value, torch.Tensor):
        return str(value.dtype), str(tuple(value.shape)), str(value.stride()), str(value.device)
    return type(leaf).__name__, str(value)


def lowered_first(program: ExportedProgram) -> ExportedProgram:
    """The program; when torch's ONNX exporter decomposes it, single operators are tried first.

    The exporter's table has every operator that it does not know and can write with others.
    """

    def run_decompositions(table: Table) -> ExportedProgram:
        operators = Operators(table, _translated_names())
        take_four_axes(program, operators)
        if lower(program, operators):
            return program
        whole: ExportedProgram = ExportedProgram.run_decompositions(program, dict(table))
        return whole

    vars(program)["run_decompositions"] = run_decompositions
    return program


def _translated_names() -> frozenset[str]:
    """Operators that torch, onnxscript or we have translations for, in some opset."""
    importlib.import_module("onnxscript.function_libs.torch_lib.ops")
    scripts: Any = importlib.import_module("onnxscript.function_libs.torch_lib.registration")
    own: Any = importlib.import_module("torch.onnx._internal.exporter._torchlib._torchlib_registry")
    names = {name.removesuffix(".default") for name, _ in scripts.default_registry.items()}
    targets = [*translations(), *(meta.fx_target for meta in own.get_torchlib_ops())]
    return frozenset(names) | {t.name() for t in targets if isinstance(t, torch._ops.OpOverload)}
