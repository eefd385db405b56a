"""torch.fx tracing of one call: its inputs become placeholders, its other arguments stay."""

from __future__ import annotations

import inspect
import linecache
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from fxrebasin.passes.trace.filling import Filling
from fxrebasin.passes.trace.graph_state import copy_graph
from fxrebasin.running.messages import has_tensor
from fxrebasin.running.outputs import Wanted
from fxrebasin.running.switches import TRACING

_FX_FOLDER = str(Path(fx.__file__).parent)


def symbolic_graph(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    finish: Callable[[Any], Any] = lambda returned: returned,
    wanted: Wanted = None,
) -> fx.GraphModule:
    """Trace `model(*args, **kwargs)` symbolically into a module that shares the model's state.

    Tensors among the inputs become placeholders, also inside tuples, lists and dicts; everything
    else (None, flags, numbers) is a constant of the graph, and its placeholder, which keeps the
    call the same, is not used. Parameters and buffers are read in the graph, never folded into
    constants. Each node's `stack_trace` ends in the line of the model that made it. The graph
    returns what `finish` makes of what the model returned, and puts into containers and objects
    among its inputs what the model puts there, as far as that is `wanted`.

    Whatever the model raises on symbolic values is passed on.
    """
    tracer = _CallTracer(model, args, kwargs, finish, wanted)
    with TRACING:
        graph = copy_graph(tracer.trace(model))
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


class _CallTracer(fx.Tracer):
    """Traces one call, and reads parameters and buffers as graph nodes wherever they are used."""

    def __init__(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        finish: Callable[[Any], Any],
        wanted: Wanted,
    ) -> None:
        super().__init__()
        self._args, self._kwargs, self._finish, self._wanted = args, kwargs, finish, wanted
        state = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in state}
        self._thread = threading.get_ident()

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make the placeholders of this call."""
        parameters = inspect.signature(self.root.forward).parameters.values()
        names = _positional_names(list(parameters), len(self._args))
        values = dict(zip(names, self._args, strict=True)) | dict(self._kwargs)
        placeholders = {name: self._placeholder(name, values) for name in values}
        made = {name: _with_structure(placeholders[name], values[name]) for name in values}
        args = [made[name] for name in names]
        kwargs = {name: made[name] for name in self._kwargs}
        shown = [(str(i), name) for i, name in enumerate(names)] + [(k, k) for k in kwargs]
        inputs = {number: (placeholders[name], made[name]) for number, name in shown}
        filling = Filling(self, inputs, self._wanted)

        def call() -> Any:
            result = self._finish(self.root.forward(*args, **kwargs))
            filling.emit()
            return result

        return call, []

    def _placeholder(self, name: str, values: Mapping[str, Any]) -> Any:
        later = list(values)[list(values).index(name) :]
        optional = not any(has_tensor(values[other]) for other in later)
        default = values[name] if isinstance(values[name], _LITERALS) else None
        return self.create_proxy("placeholder", name, (default,) if optional else (), {})

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace a call of a module; torch.fx sees those of other threads, too, which go on."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Read a parameter or buffer through a node; other attributes have their values."""
        own = isinstance(attr_val, torch.Tensor) and threading.get_ident() == self._thread
        name = self._names.get(id(attr_val)) if own else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A value of the graph."""
        return _Value(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node that knows the lines of the model it comes from."""
        node = super().create_node(*args, **kwargs)
        node.stack_trace = _stack_trace(sys._getframe(1))
        return node


class _Value(fx.Proxy):
    """A value of a graph, which may be given other data: weights are, to hold down their norms."""

    @property
    def data(self) -> fx.Proxy:
        """What it holds."""
        return fx.proxy.Attribute(self, "data")

    @data.setter
    def data(self, value: Any) -> None:
        self.tracer.create_proxy("call_function", setattr, (self, "data", value), {})


_LITERALS = (bool, int, float, str)
_CALLS = ("_wrapped_call_impl", "_call_impl")  # what nn.Module puts between a call and forward


def _positional_names(parameters: Sequence[inspect.Parameter], count: int) -> list[str]:
    """Placeholder names of the positional inputs; those of `*args` are numbered."""
    names: list[str] = []
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return names + [f"{parameter.name}_{i}" for i in range(count - len(names))]
        if len(names) < count:
            names.append(parameter.name)
    return names


def _with_structure(proxy: Any, value: Any) -> Any:
    """Stand-ins for the tensors in `value`, in the same containers; the rest as it is."""
    if isinstance(value, torch.Tensor):
        return proxy
    if not has_tensor(value):
        return value
    if isinstance(value, dict):
        return type(value)({key: _with_structure(proxy[key], item) for key, item in value.items()})
    if isinstance(value, tuple | list):
        items = [_with_structure(proxy[index], item) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return proxy


def _stack_trace(frame: FrameType | None) -> str:
    """The frames of the model's code, outermost first, in the format of a Python traceback."""
    lines: list[str] = []
    while frame is not None:
        name = frame.f_code.co_filename
        if name == __file__ and frame.f_code.co_name == "call":
            break
        ours = name == __file__ or name.startswith(_FX_FOLDER)
        if not ours and frame.f_code.co_name not in _CALLS:
            source = linecache.getline(name, frame.f_lineno).strip()
            where = f'File "{name}", line {frame.f_lineno}, in {frame.f_code.co_name}'
            lines.append(f"  {where}\n    {source}")
        frame = frame.f_back
    return "\n".join(reversed(lines)).strip() if frame is not None else ""
