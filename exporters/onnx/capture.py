"""A model as a program of torch.export, with the axes that it leaves open."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fxrebasin.errors import ExportError
from fxrebasin.exporters.onnx.experts import choose_exportable_experts
from fxrebasin.exporters.onnx.formulas import LargeFormulaError, bounded_formulas
from fxrebasin.exporters.onnx.quiet import quiet
from fxrebasin.exporters.verify.input_sets import InputSet
from fxrebasin.exporters.verify.runs import call_quietly
from fxrebasin.models.input_names import named_inputs
from fxrebasin.passes.trace.exported import trusted_distributions
from fxrebasin.passes.trace.guards import Guard, closing, guards_of, objection
from fxrebasin.passes.trace.recurrent import whole_recurrent_layers
from fxrebasin.running.given import Given
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.running.modes import modes_off
from fxrebasin.running.outputs import Wanted, counted, reduced
from fxrebasin.running.preserve import preserve

Axes: TypeAlias = Mapping[str, Mapping[int, str]]
"""Labels of axes, by the name of an input and the place of the axis there.

Axes with one label have one size.
"""

SCOPE = "model."
"""What the names of the state begin with in a captured program."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as a program.

    Attributes:
        program: of torch.export.
        inputs: names of the tensors that it takes.
        outputs: names of the tensors that it returns.
        labels: of open axes, by what stands for their size in the program.
        guards: what PyTorch relied on about sizes of open axes.
        closed: labels of the axes that the model fixes, with PyTorch's reason.
    """

    program: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    labels: Mapping[sympy.Symbol, str]
    guards: tuple[Guard, ...]
    closed: Mapping[str, str]

    def objection(self, sizes: Mapping[str, int]) -> str | None:
        """PyTorch's reason why a graph may not hold for sizes of its axes; None if it has none.

        Args:
            sizes: by label.
        """
        return objection(self.guards, self.labels, sizes)


def capture(
    model: nn.Module,
    inputs: InputSet,
    axes: Axes | None = None,
    wanted: Wanted = None,
    *,
    most_parts: int | None = None,
) -> Captured:
    """Trace a model with torch.export; print nothing.

    Args:
        model: left as it was; traced in eval mode.
        inputs: the call to trace.
        axes: those to be left open. Sizes with one label are taken for equal.
        wanted: which outputs count; see `fxrebasin.running.outputs`.
        most_parts: of a formula of sizes; see `fxrebasin.exporters.onnx.formulas`.

    Raises:
        ExportError: torch.export cannot trace it, formulas of sizes are larger than that, or it
            returns no tensor.
    """
    names = tuple(named_inputs(model, inputs.args, inputs.kwargs))
    trace = _Trace([(axes or {}).get(name, {}) for name in names], most_parts)
    flat = _Flat(model, inputs, wanted, trace)
    tensors = flat.tensors()
    shapes = tuple(dict.fromkeys(places, torch.export.Dim.AUTO) for places in trace.axes)
    try:
        # what `preserve` watches writes with knows no loops, and export writes to fake tensors
        with quiet(), preserve(model), modes_off(), trusted_distributions():
            untie(model)
            choose_exportable_experts(model)
            program = _exported(flat, tensors, shapes if any(shapes) else None, trace)
        if trace.too_large is not None:
            raise trace.too_large
    except LargeFormulaError as error:
        raise ExportError(str(error)) from error
    except Exception as error:
        if trace.too_large is not None:
            raise ExportError(str(trace.too_large)) from error
        raise ExportError(
            f"torch.export cannot export {type(model).__name__}: {root_cause(error)}"
        ) from error
    if not trace.outputs:
        raise ExportError(f"{type(model).__name__} returns no tensor")
    return Captured(program, names, tuple(trace.outputs), *trace.findings())


def _exported(
    flat: nn.Module, tensors: tuple[torch.Tensor, ...], shapes: Any, trace: _Trace
) -> torch.export.ExportedProgram:
    """The program; of the tracer that runs Python itself if that works, else of Dynamo."""
    dynamic = None if shapes is None else (shapes,)
    programs: list[torch.export.ExportedProgram] = []

    def export(strict: bool) -> None:
        made = torch.export.export(flat, tensors, dynamic_shapes=dynamic, strict=strict)
        programs.append(made)

    with _sizes_like_others(), whole_recurrent_layers():
        error = attempt(lambda: export(strict=False))
        if error is None:
            return programs[0]
        if trace.too_large is not None or attempt(lambda: export(strict=True)) is not None:
            raise error  # of the two, it is the one about the user's code
    return programs[0]


def _sizes_like_others() -> AbstractContextManager[None]:
    """Let an axis that may have size 1 be one like others, as torch.onnx.export does."""
    options: Any = importlib.import_module("torch.fx.experimental._config")
    patched: AbstractContextManager[None] = options.patch(backed_size_oblivious=True)
    return patched


def untie(model: nn.Module) -> None:
    """Give tied parameters an object for each of their names; they go on sharing their numbers.

    torch.export then keeps all names, each where it is used. To be called inside `preserve`.
    """
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in seen:
                alias = nn.Parameter(parameter.detach(), parameter.requires_grad)
                module._parameters[name] = alias
            seen.add(id(parameter))


def root_cause(error: BaseException) -> str:
    """The first line of the exception behind one of torch's exporters; they wrap it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_lines(error, 1)


@dataclass
class _Trace:
    """What is noted while a model is traced."""

    axes: Sequence[Mapping[int, str]]
    most_parts: int | None = None
    too_large: LargeFormulaError | None = None
    outputs: list[str] = field(default_factory=list)
    sizes: list[tuple[str, torch.SymInt]] = field(default_factory=list)

    def note_outputs(self, names: Sequence[str]) -> None:
        self.outputs[:] = names

    def note_sizes(self, tensors: Sequence[torch.Tensor]) -> None:
        """Note the sizes of open axes, and tell PyTorch that those with one label are equal."""
        first: dict[str, Any] = {}
        self.sizes.clear()
        for tensor, places in zip(tensors, self.axes, strict=True):
            for axis, label in places.items():
                size: Any = tensor.shape[axis]
                if isinstance(size, torch.SymInt):
                    self.sizes.append((label, size))
                    torch._check(size == first.setdefault(label, size))

    @contextmanager
    def formulas(self) -> Iterator[None]:
        """Bound formulas of sizes, and keep the fault, which the model may catch."""
        if self.most_parts is None or not self.sizes:
            yield
            return
        try:
            with bounded_formulas(self.sizes[0][1].node.shape_env, self.most_parts):
                yield
        except LargeFormulaError as error:
            self.too_large = error
            raise

    def findings(self) -> tuple[dict[sympy.Symbol, str], tuple[Guard, ...], dict[str, str]]:
        """Labels by symbol, guards, and why axes were closed."""
        if not self.sizes:
            return {}, (), {label: "" for places in self.axes for label in places.values()}
        own = {size.node._expr: label for label, size in self.sizes}
        environment = self.sizes[0][1].node.shape_env
        guards = guards_of(environment)
        labels: dict[sympy.Symbol, str] = {}
        closed: dict[str, str] = {}
        for symbol, label in own.items():
            now = environment.replace(symbol)
            if now.is_number:
                closed.setdefault(label, closing(symbol, guards, own))
            labels.setdefault(symbol, label)
            if now.is_Symbol:
                labels.setdefault(now, label)
        known = set(labels)
        about = [guard for guard in guards if guard.condition.free_symbols <= known]
        return labels, tuple(about), closed


class _Flat(nn.Module):
    """The model as a function from a tuple of tensors to a tuple of tensors.

    Keyword inputs, inputs that are not tensors, and returned dataclasses, caches, numbers and None
    are each too much for torch's exporter in some combination.
    """

    def __init__(self, model: nn.Module, inputs: InputSet, wanted: Wanted, trace: _Trace) -> None:
        super().__init__()
        self.model = model
        self.training = False  # `eval()` would also be called on the model
        self._leaves, self._spec = tree_flatten((inputs.args, dict(inputs.kwargs)))
        self._wanted = wanted
        # from outside the module, since torch.export guards its state
        self._note_outputs: Callable[[Sequence[str]], None] = trace.note_outputs
        self._note_sizes: Callable[[Sequence[torch.Tensor]], None] = trace.note_sizes
        self._formulas: Callable[[], AbstractContextManager[None]] = trace.formulas

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The inputs; copies, since torch.export takes one tensor passed twice for one input."""
        return tuple(leaf.clone() for leaf in self._leaves if isinstance(leaf, torch.Tensor))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if torch.compiler.is_dynamo_compiling():  # Dynamo has no access to symbols
            return self._run(tensors)
        self._note_sizes(tensors)
        with self._formulas():
            return self._run(tensors)

    def _run(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        inputs = iter(tensors)
        leaves = [next(inputs) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._spec)
        given = Given(args, kwargs)
        returned = reduced(self.model, call_quietly(self.model, args, kwargs), self._wanted)
        outputs = counted(returned, self._wanted, given)
        self._note_outputs(list(outputs))
        return tuple(outputs.values())
