"""A graph as a module that runs it; what the file stores are its parameters and buffers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from onnx import TypeProto
from torch import Tensor, nn

from fxrebasin.errors import InputError
from fxrebasin.importers.onnx.foreign import Sizes, Unknown, full_name
from fxrebasin.importers.onnx.gates import in_gates
from fxrebasin.importers.onnx.graph import Graph, Parsed, Step
from fxrebasin.importers.onnx.registry import UnsupportedError

_FAULTS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError)


class _Holder(nn.Module):
    """A part of names between two dots; others may have the same name as a tensor in it."""

    def __getattr__(self, name: str) -> Any:
        modules = vars(self)["_modules"]
        return modules[name] if name in modules else super().__getattr__(name)


class _Scope:
    """Values by name, those of the graph around included."""

    def __init__(self, values: dict[str, Any], around: _Scope | None, sizes: Sizes) -> None:
        self.values = values
        self.sizes = sizes
        self._around = around

    def __getitem__(self, name: str) -> Any:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope._around
        raise InputError(f"the graph reads {name!r}, which nothing in it makes")


class _Body:
    """A graph of the file as a function of its inputs."""

    def __init__(self, model: OnnxModule, graph: Graph, scope: _Scope) -> None:
        self._model, self._graph, self._scope = model, graph, scope
        self.results = graph.outputs

    def __call__(self, *values: Any) -> list[Any]:
        given = dict(zip(self._graph.inputs, values, strict=True))
        return self._model.run(self._graph, given, self._scope, self._scope.sizes)


class _Node(nn.Module):
    """A node; being a module, it gives its name to what is found about it."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, model: OnnxModule, scope: _Scope) -> Any:
        step = self.step
        if step.operator is None:
            if model.unknown is Unknown.REFUSED:
                name = full_name(step.domain, step.kind)
                raise UnsupportedError(f"the operator {name} {step.name!r} is not known")
            return _alone(step, scope)
        given: list[Any] = [
            _rows(step.rows[at], scope) if at in step.rows else scope[name] if name else None
            for at, name in enumerate(step.inputs)
        ]
        options = dict(step.attributes)
        options.update({n: _Body(model, graph, scope) for n, graph in step.graphs.items()})
        if step.operator.asks:
            options["site"] = step.site
        try:
            return step.operator.function(*given, **options)
        except UnsupportedError as error:
            if step.graphs or model.unknown is Unknown.REFUSED:
                _say_where(error, step, given)
                raise
            return _alone(step, scope)
        except _FAULTS as error:
            _say_where(error, step, given)
            raise


def _rows(names: Sequence[Sequence[str]], scope: _Scope) -> list[list[Any]]:
    return [[scope[name] for name in parts] for parts in names]


def _alone(step: Step, scope: _Scope) -> tuple[Tensor | None, ...]:
    """What onnxruntime makes of a node that is not computed here."""
    node = step.alone.ready
    found = node([scope[name] for name in node.reads], scope.sizes)
    made = dict(zip(node.makes, found, strict=True))
    return tuple(made.get(name) for name in step.outputs)


def _say_where(error: Exception, step: Step, given: list[Any]) -> None:
    """Put the node into the text of an error, which stays of its kind; those around it follow."""
    shapes = [tuple(item.shape) if isinstance(item, Tensor) else None for item in given]
    place = f"{full_name(step.domain, step.kind)} {step.name!r} on {shapes}"
    error.args = (f"{place}: {error}", *error.args[1:])


class OnnxModule(_Holder):
    """Runs a graph.

    Parameters and buffers have the names that the file gives its tensors, dots and slashes
    included, so that whatever is said of them is said in the file's words.

    Args:
        parsed: the model.
        state: names of the tensors that are parameters; the others are constants.
        unknown: what becomes of operators that are not computed here.
        together: names of parameters that are one and the same as others, with the names of those,
            which come first.

    Example:
        >>> import torch
        >>> from onnx import parser
        >>> from fxrebasin.importers.onnx.graph import parse
        >>> head = '<ir_version: 8, opset_import: [ "" : 17 ]>'
        >>> graph = parser.parse_model(head + "g (float[n] x) => (float[n] y) { y = Relu(x) }")
        >>> OnnxModule(parse(graph))(torch.tensor([-1.0, 2.0]))
        {'y': tensor([0., 2.])}
    """

    def __init__(
        self,
        parsed: Parsed,
        state: Collection[str] = (),
        unknown: Unknown = Unknown.REFUSED,
        together: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.inputs = tuple(parsed.types)
        self._types = parsed.types
        self.unknown = unknown
        self.together = together or {}
        self._graph = in_gates(parsed.graph, parsed.tensors)
        self._slots: dict[str, tuple[dict[str, Any], str]] = {}
        self.file_names: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        for name, tensor in parsed.tensors.items():
            self._hold(name, tensor, name in state)
        for _, step in self._graph.all_steps():
            self._add_node(step)
        self.eval()

    def _hold(self, name: str, tensor: Tensor, is_state: bool) -> None:
        holder: nn.Module = self
        *path, last = self._usable(name).split(".")
        for part in path:
            inner = holder._modules.get(part)
            if inner is None:
                inner = _Holder()
                holder._modules[part] = inner
            holder = inner
        if is_state:
            first = self._slots.get(self.together.get(name, ""))
            one = nn.Parameter(tensor, requires_grad=False) if first is None else first[0][first[1]]
            holder._parameters[last] = one
            self._slots[name] = (holder._parameters, last)
        else:
            holder._buffers[last] = tensor
            holder._non_persistent_buffers_set.add(last)
            self._slots[name] = (holder._buffers, last)
        self.file_names[".".join([*path, last])] = name

    def _usable(self, name: str) -> str:
        """The name, if torch can hold a tensor under it; else the same with another dot."""
        parts = name.split(".")
        taken = any(hasattr(nn.Module, part) or part in vars(self) for part in parts[:-1])
        if all(parts) and not taken and not hasattr(nn.Module, parts[-1]):
            return name
        found = name.replace(".", "\N{ONE DOT LEADER}") or "\N{ONE DOT LEADER}"
        while found in self.file_names or hasattr(nn.Module, found):
            found += "'"
        return found

    def _add_node(self, step: Step) -> None:
        name = step.name.replace(".", "\N{ONE DOT LEADER}") or step.kind
        while name in self._modules or name in self._parameters or name in self._buffers:
            name = f"{name} ({step.kind})"
        self._modules[name] = _Node(step)
        self._nodes[step.name] = name

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The outputs of the file by name; inputs go by position or by name."""
        given = dict(zip(self.inputs, args, strict=False))
        given.update(kwargs)
        if set(given) != set(self.inputs) or len(args) > len(self.inputs):
            raise InputError(
                f"the file has the inputs {', '.join(self.inputs) or 'none'}; "
                f"{len(args)} by position and {', '.join(kwargs) or 'none'} by name were given"
            )
        sizes = Sizes(_named_sizes(self._types, given), self.unknown is Unknown.GUESSED)
        results = self.run(self._graph, given, None, sizes)
        return dict(zip(self._graph.outputs, results, strict=True))

    def run(
        self,
        graph: Graph,
        given: Mapping[str, Any],
        around: _Scope | None,
        sizes: Sizes,
    ) -> list[Any]:
        """Run a graph of the file.

        Args:
            graph: the model's own, or a body.
            given: its inputs by name.
            around: names of the graph that it is in.
            sizes: of results, as far as they are known.
        """
        scope = _Scope(dict(given), around, sizes)
        values = scope.values
        for local, name in graph.tensors.items():
            holder, key = self._slots[name]
            values[local] = holder[key]
        for step in graph.steps:
            node = self._modules[self._nodes[step.name]]
            found = node(self, scope)  # type: ignore[misc]
            found = found if isinstance(found, tuple) else (found,)
            for name, value in zip(step.outputs, found, strict=False):
                if name:
                    values[name] = value
            if len(found) < step.site.outputs:
                raise UnsupportedError(
                    f"{full_name(step.domain, step.kind)} {step.name!r} is asked for "
                    f"{step.site.outputs} outputs, of which {len(found)} are computed"
                )
            for name in step.done:
                values.pop(name, None)
        return [scope[name] for name in graph.outputs]


class AtSeveralSizes(OnnxModule):
    """The same graph, run on several sets of inputs in one call.

    What is found of it holds for all of them, and so does no more than what holds for each.
    """

    def forward(self, *args: Any) -> list[dict[str, Any]]:  # type: ignore[override]
        """The outputs for each set of inputs; these go by position, one set after the other."""
        count = len(self.inputs)
        starts = range(0, len(args), max(count, 1))
        return [super(AtSeveralSizes, self).forward(*args[at : at + count]) for at in starts]


def _named_sizes(types: Mapping[str, TypeProto], given: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of dimensions that have a name in the file."""
    return {
        dim.dim_param: size
        for name, kind in types.items()
        if isinstance(given[name], Tensor)
        for dim, size in zip(kind.tensor_type.shape.dim, given[name].shape, strict=False)
        if dim.dim_param
    }
