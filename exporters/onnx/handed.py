"""A graph that torch.export made, as the program that it came from: nothing is traced again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import sympy
import torch
from torch import Tensor, fx, nn
from torch._export.verifier import TrainingIRVerifier
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils._pytree import tree_flatten, tree_leaves

from fxrebasin.exporters.onnx.capture import SCOPE, Axes, Captured
from fxrebasin.exporters.verify.input_sets import InputSet
from fxrebasin.passes.trace.guards import Guard, guards_of, now
from fxrebasin.running.given import Given
from fxrebasin.running.operators import writes
from fxrebasin.running.outputs import Wanted, counted, reduced

_Call: TypeAlias = Mapping[str, tuple[fx.Node, Any]]
_State: TypeAlias = Mapping[str, tuple[fx.Node, Tensor]]

_LEAVES_NUMBERS = (torch.ops.aten.detach_.default,)
"""Operators that write, but no numbers: tensors that are made in a forward have this one."""


def handed_on(model: nn.Module, inputs: InputSet, axes: Axes, wanted: Wanted) -> Captured | None:
    """A graph of ATen operators as a program, with what has been known of it since it was traced.

    Args:
        model: left as it is.
        inputs: a call of it.
        axes: those to be left open.
        wanted: which outputs count.

    Returns:
        None where it has to be traced: torch.export did not make it, or made it with other axes
        open or for other inputs, or it writes, or holds further graphs.
    """
    call = _bound(model, inputs)
    symbols = None if call is None else _symbols(call, axes)
    if not isinstance(model, fx.GraphModule) or call is None or symbols is None:
        return None
    state = _state(model)
    if state is None or not all(map(_is_known, model.graph.nodes)):
        return None
    results = _results(model, call, wanted)
    taken = {name: (node, value) for name, (node, value) in call.items() if _is_tensor(node)}
    if not results or not taken:
        return None
    program = _program(model, state, taken, list(results.values()))
    labels, guards = _relied_on(symbols)
    return Captured(program, tuple(taken), tuple(results), labels, guards, {})


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), FakeTensor)


def _is_known(node: fx.Node) -> bool:
    """Whether a node is one of a program, and the form of its value is known."""
    if node.op == "output":
        return True
    if node.op not in ("placeholder", "get_attr", "call_function") or "val" not in node.meta:
        return False
    operator = isinstance(node.target, torch._ops.OpOverload)
    if node.op == "call_function" and isinstance(node.target, torch._ops.OperatorBase):
        return operator and (node.target in _LEAVES_NUMBERS or not writes(node.target))
    return True


def _bound(model: nn.Module, inputs: InputSet) -> _Call | None:
    """The inputs of a graph by name, each with the node that takes it.

    None if it is no graph, nothing is known of these nodes, or inputs are in containers.
    """
    if not isinstance(model, fx.GraphModule):
        return None
    try:
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError:
        return None
    nodes = {node.target: node for node in model.graph.nodes if node.op == "placeholder"}
    if bound.arguments.keys() != nodes.keys() or not all("val" in n.meta for n in nodes.values()):
        return None
    call = {name: (nodes[name], value) for name, value in bound.arguments.items()}
    return call if all(_takes(node, value) for node, value in call.values()) else None


def _takes(node: fx.Node, value: Any) -> bool:
    form = node.meta["val"]
    if isinstance(form, FakeTensor):
        return isinstance(value, Tensor) and _alike(form, value)
    return type(form) is type(value) and not isinstance(form, Tensor) and form == value


def _alike(form: FakeTensor, tensor: Tensor) -> bool:
    if (form.dtype, form.device, form.ndim) != (tensor.dtype, tensor.device, tensor.ndim):
        return False
    sizes: Iterator[tuple[Any, int]] = zip(form.shape, tensor.shape, strict=True)
    return all(isinstance(size, torch.SymInt) or size == own for size, own in sizes)


def _state(model: fx.GraphModule) -> _State | None:
    """What the graph reads of the model by name; None if it is not what it was made for."""
    held = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    found: dict[str, tuple[fx.Node, Tensor]] = {}
    for node in model.graph.nodes:
        if node.op != "get_attr":
            continue
        form, tensor = node.meta["val"], held.get(node.target)
        if tensor is None or not isinstance(form, FakeTensor) or not _alike(form, tensor):
            return None
        found.setdefault(node.target, (node, tensor))
    return found


def _symbols(call: _Call, axes: Axes) -> Mapping[str, list[torch.SymInt]] | None:
    """The sizes of open axes by label; None if others are open than were asked for."""
    found: dict[str, list[torch.SymInt]] = {}
    for name, (node, _) in call.items():
        places = axes.get(name, {})
        sizes = tuple(node.meta["val"].shape) if _is_tensor(node) else ()
        opened = {axis for axis, size in enumerate(sizes) if isinstance(size, torch.SymInt)}
        if opened != places.keys():
            return None
        for axis, label in places.items():
            found.setdefault(label, []).append(sizes[axis])
    # Sizes with one label that nothing relates have a symbol each; those of two labels may differ.
    known = {label: {now(size) for size in sizes} for label, sizes in found.items()}
    each = [symbol for symbols in known.values() for symbol in symbols]
    plain = all(isinstance(symbol, sympy.Symbol) for symbol in each)
    return found if plain and len(each) == len(set(each)) else None


def _results(model: fx.GraphModule, call: _Call, wanted: Wanted) -> Mapping[str, fx.Node]:
    """The nodes of the outputs that count, by name; none if they are not all nodes of the graph."""
    forms = {name: node.meta["val"] for name, (node, _) in call.items()}
    flat = model.graph.output_node().args[0]
    leaves = [leaf for leaf in tree_leaves(flat) if isinstance(leaf, fx.Node)]
    nodes = {id(node.meta["val"]): node for node in leaves}
    values = fx.node.map_arg(flat, lambda node: node.meta["val"])
    returned = reduced(model, model.graph.process_outputs(values), wanted)
    tensors = counted(returned, wanted, Given((), forms))
    if not all(id(tensor) in nodes for tensor in tensors.values()):
        return {}
    return {name: nodes[id(tensor)] for name, tensor in tensors.items()}


def _relied_on(
    symbols: Mapping[str, Sequence[torch.SymInt]],
) -> tuple[dict[sympy.Symbol, str], tuple[Guard, ...]]:
    """Labels by symbol, and what PyTorch relied on about these."""
    labels: dict[Any, str] = {}
    guards: tuple[Guard, ...] = ()
    for label, sizes in symbols.items():
        for size in sizes:
            labels.update(dict.fromkeys((size.node._expr, now(size)), label))
            guards = guards_of(size.node.shape_env)
    known = set(labels)
    return labels, tuple(g for g in guards if g.condition.free_symbols <= known)


def _program(
    model: fx.GraphModule, state: _State, taken: _Call, results: Sequence[fx.Node]
) -> ExportedProgram:
    """The program: what is read of the model goes in before the inputs."""
    lift = _Lift(model)
    for target, (node, _) in sorted(state.items(), key=lambda item: item[0] not in lift.parameters):
        lift.take_state(target, node)
    for name, (node, _) in taken.items():
        lift.take_input(name, node)
    outputs = lift.copy_rest(results)
    held = {target: tensor for target, (_, tensor) in state.items()}
    tensors = tuple(value for _, value in taken.values())
    spec, out_spec = tree_flatten((tensors, {}))[1], tree_flatten(outputs)[1]
    signature = ModuleCallSignature(inputs=[], outputs=[], in_spec=spec, out_spec=out_spec)
    returned = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in outputs]
    return ExportedProgram(
        root=nn.Module(),
        graph=lift.graph,
        graph_signature=ExportGraphSignature(lift.specs, returned),
        state_dict={SCOPE + name: held[name] for name in held if name not in lift.passing},
        range_constraints=dict(_ranges(taken)),
        module_call_graph=[ModuleCallEntry("", signature)],
        example_inputs=(tensors, {}),
        constants={SCOPE + name: held[name] for name in held if name in lift.passing},
        verifiers=[TrainingIRVerifier],
    )


class _Lift:
    """Makes the graph of a program, to which parameters and buffers are inputs.

    Args:
        model: whose graph is copied.

    Attributes:
        graph: the copy.
        specs: what each of its inputs is.
        parameters: names of those of the model.
        passing: names of buffers that no state dict has.
    """

    def __init__(self, model: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        self.specs: list[InputSpec] = []
        self.parameters = dict(model.named_parameters(remove_duplicate=False)).keys()
        self.passing = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules(remove_duplicate=False)
            for name in module._non_persistent_buffers_set
        }
        self._model = model
        self._state: dict[Any, fx.Node] = {}
        self._nodes: dict[fx.Node, fx.Node] = {}

    def take_state(self, target: str, node: fx.Node) -> None:
        """Let a parameter or buffer go in, as it is read by a node."""
        own = target in self.parameters
        made = self._state[target] = self._placeholder(f"{'p' if own else 'b'}_{target}", node)
        kind = InputKind.PARAMETER if own else InputKind.BUFFER
        kept = None if own else target not in self.passing
        self.specs.append(InputSpec(kind, TensorArgument(made.name), SCOPE + target, kept))

    def take_input(self, name: str, node: fx.Node) -> None:
        """Let a tensor of the call go in."""
        made = self._nodes[node] = self._placeholder(f"input_{name}", node)
        self.specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(made.name), None))

    def copy_rest(self, results: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        """Copy what is computed, and return the copies of what is returned."""
        for node in self._model.graph.nodes:
            if node.op == "get_attr":
                self._nodes[node] = self._state[node.target]
            elif node.op == "call_function":
                self._nodes[node] = self.graph.node_copy(node, self._nodes.__getitem__)
        outputs = tuple(self._nodes[node] for node in results)
        self.graph.output(outputs)
        return outputs

    def _placeholder(self, name: str, like: fx.Node) -> fx.Node:
        made = self.graph.placeholder(name.replace(".", "_"))
        made.meta = dict(like.meta)
        return made


def _ranges(taken: _Call) -> Iterator[tuple[sympy.Symbol, Any]]:
    for node, _ in taken.values():
        for size in node.meta["val"].shape:
            if isinstance(size, torch.SymInt):
                symbol: Any = now(size)
                yield symbol, size.node.shape_env.var_to_range[symbol]
