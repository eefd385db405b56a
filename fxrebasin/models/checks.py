"""May these models be analysed and matched? Refusals, before any work, with all their reasons."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.models.sharded import unsharded
from fxrebasin.running.messages import describe
from fxrebasin.running.subclasses import behaves_otherwise
from fxrebasin.wording import listed, spoken

_SHOWN = 30  # names in a message
_ROWS = 10  # differences in a message; the error has them all
_MOST_PATTERNS = 4  # that are proposed; with more, the models are not of one kind
_QUANTISED_PACKAGES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def unwrap(model: Any) -> nn.Module:
    """The module inside wrappers of torch.compile, DataParallel and DistributedDataParallel.

    Of a model that `fully_shard` spread over processes it is a whole copy.

    Raises:
        InputError: `model` or a part of it is scripted, or is not a module at all.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(inner)) is inner
        True
    """
    while isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:  # what torch.compile makes; importing it is slow
            model = model._modules["_orig_mod"]
        else:
            _refuse_scripted_parts(model)
            return unsharded(model)
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise InputError(
            f"the model is scripted ({kind}): its Python code, which the analysis follows, is "
            "gone. Pass the nn.Module that it was scripted or traced from."
        )
    raise InputError(f"the model is of type {kind}; expected a torch.nn.Module.")


def _refuse_scripted_parts(model: nn.Module) -> None:
    parts = [n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if parts:
        raise InputError(
            f"submodules are scripted: {listed(parts, _SHOWN)}. Their Python code, which the "
            "analysis follows, is gone; put the modules there that they were scripted from."
        )


def check_usable(model: nn.Module, *, needs_weights: bool = True) -> None:
    """Refuse a model whose state cannot be analysed or permuted, naming all that is at fault.

    `-inf` in a buffer is accepted: attention masks are made of it.

    Args:
        model: an unwrapped module.
        needs_weights: refuse meta tensors and non-finite values; analysis alone needs no values.

    Raises:
        InputError: uninitialised or quantised tensors, sparse parameters, quantised modules, or
            (with `needs_weights`) tensors without values or with values that are not finite.

    Example:
        >>> check_usable(nn.Linear(2, 2))
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for check in (*_CHECKS, _META) if needs_weights else _CHECKS:
        names = [name for name, tensor in tensors if check.fails(tensor)]
        if names:
            raise InputError(f"{check.what}: {listed(names, _SHOWN)}. {check.advice}")
    modules = [name or "the model" for name, m in model.named_modules() if _is_quantised_module(m)]
    if modules:
        raise InputError(f"quantised modules: {listed(modules, _SHOWN)}. {_QUANTISED.advice}")
    if needs_weights:
        check_finite(dict(model.named_parameters()), dict(model.named_buffers()))


def check_finite(
    parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Refuse NaN and infinity, naming every tensor that has one and where the first is.

    Args:
        parameters: tensors by name, all of whose values have to be finite.
        buffers: tensors by name, where -inf is accepted too (masks), and both where a tensor has
            one element (bounds that bound nothing).

    Raises:
        InputError: naming every tensor at fault, with the index of the first such value.

    Example:
        >>> check_finite({"weight": torch.zeros(2)}, {"mask": torch.tensor([0.0, -math.inf])})
    """
    faults = [(name, _first_fault(tensor)) for name, tensor in parameters.items()]
    for name, tensor in (buffers or {}).items():
        allowed = (-math.inf, math.inf) if tensor.numel() == 1 else (-math.inf,)
        faults.append((name, _first_fault(tensor, allowed)))
    found = [
        f"{name}{list(at)} = {value}" for name, fault in faults if fault for at, value in [fault]
    ]
    if found:
        raise InputError(
            f"weights that are not finite: {listed(found, _SHOWN)} (the first of each tensor). "
            "Outputs and matching would be meaningless; load an intact checkpoint or repair these "
            "values."
        )


def _first_fault(
    tensor: torch.Tensor, allowed: tuple[float, ...] = ()
) -> tuple[tuple[int, ...], float] | None:
    """Index and value of the first element that is not finite and not one of `allowed`."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return None
    if tensor.layout != torch.strided:
        return _first_fault(tensor.detach().to_dense(), allowed)
    values = tensor.detach()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    values = values.float() if values.dtype.itemsize == 1 else values  # fp8 has no minimum
    if all(math.isfinite(bound) for bound in _bounds(values)):
        return None
    wrong = ~values.isfinite()
    for value in allowed:
        wrong &= values != value
    places = wrong.nonzero()
    if not len(places):
        return None
    place = tuple(places[0].tolist())
    return place[: tensor.ndim], float(values[place])


def _bounds(values: torch.Tensor) -> tuple[float, float]:
    """Least and greatest value, NaN if there is one; no memory is taken."""
    low, high = torch.aminmax(values)
    return float(low), float(high)


def _is_quantised(tensor: torch.Tensor) -> bool:
    packed = isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter
    integers = not (tensor.is_floating_point() or tensor.is_complex())
    return any((tensor.is_quantized, packed and integers, is_traceable_wrapper_subclass(tensor)))


def _is_quantised_module(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_QUANTISED_PACKAGES)


@dataclass(frozen=True)
class _Check:
    """A property of tensors that makes a model unusable."""

    what: str
    fails: Callable[[torch.Tensor], bool]
    advice: str


_QUANTISED = _Check(
    "quantised parameters",
    _is_quantised,
    "Their values are packed, or scaled by unit; permute the model before it is quantised.",
)
_CHECKS = (
    _Check(
        "parameters that are not initialised yet",
        nn.parameter.is_lazy,
        "Run the model once on an example input, which gives lazy modules their shapes.",
    ),
    _QUANTISED,
    _Check(
        "sparse parameters",
        lambda tensor: isinstance(tensor, nn.Parameter) and tensor.layout != torch.strided,
        "Make them dense first, with `to_dense()`.",
    ),
    _Check(
        "parameters of a tensor subclass with operators of its own",
        lambda tensor: behaves_otherwise(type(tensor)),
        "Only the subclass knows what such a tensor holds; permute the model before it gets them.",
    ),
)
_META = _Check(
    "parameters without values (on the meta device)",
    lambda tensor: tensor.is_meta,
    "Analysis works without them; matching and rewriting need a model with its weights loaded.",
)


@dataclass(frozen=True)
class Difference:
    """A state tensor on which two models disagree; a side is None where it lacks the tensor."""

    name: str
    left: str | None
    right: str | None


@dataclass(frozen=True)
class Remedy:
    """The single option that would make two states fit.

    Args:
        option: its name, as an argument.
        values: names or patterns; none for an option that is on or off.

    Example:
        >>> print(Remedy("ignore", ("fc.*",)), Remedy("key", ("ema",)), Remedy("ignore_extra"))
        ignore=('fc.*',) key='ema' ignore_extra=True
    """

    option: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        option = f"--{self.option.replace('_', '-')}"
        if not self.values:
            return spoken(f"{self.option}=True", option)
        value = self.values if self.option == "ignore" else self.values[0]
        return spoken(f"{self.option}={value!r}", shlex.join([option, ",".join(self.values)]))


class StateMismatchError(ArchitectureMismatchError):
    """Two states have other keys, shapes or kinds of dtype.

    `differences` has all of them, and `remedy` what would make the rest fit, if one option would.
    """

    def __init__(
        self, message: str, differences: Sequence[Difference], remedy: Remedy | None = None
    ) -> None:
        super().__init__(message)
        self.differences = tuple(differences)
        self.remedy = remedy


def check_same_architecture(
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    names: tuple[str, str] = ("the model", "the reference"),
) -> None:
    """Refuse states that cannot be of one architecture, with everything that differs.

    Keys and shapes must be the same, and dtypes of the same kind (float32 and float16 are).

    Args:
        state_b: tensors by name, of any order.
        state_a: the same of the other model.
        names: what the two are called in the message.

    Raises:
        StateMismatchError: an `ArchitectureMismatchError` whose `differences` is complete; its
            message counts what fits, shows the first of the differences as a table, and says
            what would make the rest fit.

    Example:
        >>> check_same_architecture({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    """
    differences = differences_of(state_b, state_a)
    if differences:
        raise mismatch(differences, len(state_b), names, ignoring(differences, state_b))


def differences_of(
    state_b: Mapping[str, torch.Tensor], state_a: Mapping[str, torch.Tensor]
) -> list[Difference]:
    """The tensors that are in one state only, or of another shape or kind of dtype.

    Args:
        state_b: tensors by name.
        state_a: the same of the other model.
    """
    return [
        Difference(name, _brief(state_b.get(name)), _brief(state_a.get(name)))
        for name in [*state_b, *(name for name in state_a if name not in state_b)]
        if not _same_kind(state_b.get(name), state_a.get(name))
    ]


def mismatch(
    differences: Sequence[Difference],
    total: int,
    names: tuple[str, str],
    remedy: Remedy | None = None,
) -> StateMismatchError:
    """The error that tells differences.

    Args:
        differences: at least one.
        total: how many tensors the model has.
        names: what the two are called.
        remedy: what would make the rest fit.
    """
    fits = total - sum(d.left is not None for d in differences)
    advice = f"\nWhat is left fits with {remedy}." if remedy else ""
    return StateMismatchError(
        _table(differences, names, f"{fits} of {total} tensors fit") + advice, differences, remedy
    )


def ignoring(
    differences: Sequence[Difference], state: Collection[str], already: Sequence[str] = ()
) -> Remedy | None:
    """Patterns that fit all names that differ, and as few as possible of a model's others.

    Args:
        differences: at least one.
        state: names of the model.
        already: patterns of what is ignored as it is.

    Example:
        >>> ignoring([Difference("fc.weight", "float32[2, 3]", None)], ["conv.weight", "fc.weight"])
        Remedy(option='ignore', values=('fc.*',))
    """
    differing = [d.name for d in differences]
    fitting = [name for name in state if name not in set(differing)]
    patterns = tuple(dict.fromkeys(_broadest(name, fitting) for name in differing))
    if len(patterns) > _MOST_PATTERNS:  # a head of several layers, some tensors of which fit
        start = _common_start(differing)
        patterns = (f"{start}*",)
        fitting = [name for name in fitting if not name.startswith(start)]
    if len(fitting) < len(differing):
        return None
    return Remedy("ignore", (*already, *patterns))


def _common_start(names: Sequence[str]) -> str:
    """The modules that all names begin with, with the dot after them."""
    first, last = min(names), max(names)
    same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[: first.rfind(".", 0, same) + 1]


def _broadest(name: str, fitting: Sequence[str]) -> str:
    """The name with as much of its end left open as no name that fits has."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        start = ".".join(parts[:count]) + "."
        if not any(other.startswith(start) for other in fitting):
            return f"{start}*"
    return name


def _same_kind(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    if left is None or right is None:
        return False
    return left.shape == right.shape and _kind(left.dtype) == _kind(right.dtype)


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex or dtype.is_floating_point:
        return "complex" if dtype.is_complex else "float"
    return "bool" if dtype is torch.bool else "integer"


def _brief(tensor: torch.Tensor | None) -> str | None:
    return None if tensor is None else describe(tensor)


def _table(differences: Sequence[Difference], names: tuple[str, str], fits: str) -> str:
    rows = [("tensor", *names)] + [
        (d.name, d.left or "missing", d.right or "missing") for d in differences[:_ROWS]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    left = sum(d.right is None for d in differences)
    right = sum(d.left is None for d in differences)
    counts = [
        (left, f"only in {names[0]}"),
        (right, f"only in {names[1]}"),
        (len(differences) - left - right, "of another shape or kind"),
    ]
    total = ", ".join(f"{count} {what}" for count, what in counts if count)
    more = len(differences) - _ROWS
    if more > 0:
        lines.append(f"and {more} more, in the `differences` of this error")
    first = f"{names[0]} and {names[1]} are not of the same architecture: {fits}, {total}"
    return "\n  ".join([first, *lines])


def first_graph_difference(graph_b: fx.GraphModule, graph_a: fx.GraphModule) -> str | None:
    """How the graphs of two models with the same state differ; None if they do not.

    Nodes are compared in order: operation, target (for a submodule its type and settings), and
    arguments. Names of nodes do not count.

    Args:
        graph_b: graph of the model.
        graph_a: graph of the reference.

    Example:
        >>> graphs = [fx.symbolic_trace(nn.Sequential(m)) for m in (nn.ReLU(), nn.GELU())]
        >>> print(first_graph_difference(*graphs))
        node 1 is call_module 0 = ReLU(input_1) in the model and call_module 0 = GELU(approximate=\
'none')(input_1) in the reference
    """
    nodes_b, nodes_a = list(graph_b.graph.nodes), list(graph_a.graph.nodes)
    numbers = [{node: i for i, node in enumerate(nodes)} for nodes in (nodes_b, nodes_a)]
    for index, (node_b, node_a) in enumerate(zip(nodes_b, nodes_a, strict=False)):
        key_b = _node_key(graph_b, node_b, numbers[0])
        if key_b != _node_key(graph_a, node_a, numbers[1]):
            return (
                f"node {index} is {_node_text(graph_b, node_b)} in the model and "
                f"{_node_text(graph_a, node_a)} in the reference{_line_of(node_b)}"
            )
    if len(nodes_b) != len(nodes_a):
        return f"the model has {len(nodes_b)} nodes and the reference {len(nodes_a)}"
    return None


def _node_key(graph: fx.GraphModule, node: fx.Node, numbers: Mapping[fx.Node, int]) -> object:
    arguments = fx.map_arg((node.args, node.kwargs), lambda other: f"%{numbers[other]}")
    return node.op, _target_text(graph, node), repr(arguments)


def _target_text(graph: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{node.target} = {graph.get_submodule(str(node.target))!r}"
    if callable(node.target):
        return f"{node.target.__module__}.{getattr(node.target, '__name__', node.target)}"
    return "" if node.op == "output" else str(node.target)


def _node_text(graph: fx.GraphModule, node: fx.Node) -> str:
    arguments = [str(argument) for argument in node.args]
    arguments += [f"{name}={argument}" for name, argument in node.kwargs.items()]
    return f"{node.op} {_target_text(graph, node)}({', '.join(arguments)})".replace("()(", "(")


def _line_of(node: fx.Node) -> str:
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if " line " in line]
    return f" ({lines[-1]})" if lines else ""
