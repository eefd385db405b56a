"""Sample calls of operators: what is called, on operands of which shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Operand:
    """A tensor operand: a parameter, a buffer of running statistics, or an input of the model.

    The operator gets it with its axes in reverse order, or expanded, where that is asked for.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    low: float = -2.0
    high: float = 2.0
    role: str = "parameter"
    seen_as: tuple[int, ...] = ()
    transposed: bool = False

    def seen(self, tensor: Tensor) -> Tensor:
        """The tensor as the operator gets it."""
        if self.transposed:
            return tensor.permute(*reversed(range(tensor.ndim)))
        return tensor.expand(self.seen_as) if self.seen_as else tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """Uniform random data."""
        if not self.dtype.is_floating_point and not self.dtype.is_complex:
            low, high = int(self.low), int(self.high) + 1
            return torch.randint(low, high, self.shape, generator=generator).to(self.dtype)
        dtype = torch.complex128 if self.dtype.is_complex else torch.float64
        uniform = torch.rand(self.shape, generator=generator, dtype=dtype)
        return (self.low + (self.high - self.low) * uniform).to(self.dtype)


def p(*shape: int, low: float = -2.0, high: float = 2.0) -> Operand:
    """A floating-point parameter."""
    return Operand(shape, low=low, high=high)


def ints(*shape: int, low: int = 1, high: int = 90) -> Operand:
    """An integer parameter."""
    return Operand(shape, torch.int64, low, high)


def bools(*shape: int) -> Operand:
    """A boolean parameter."""
    return Operand(shape, torch.bool, 0, 1)


def complexes(*shape: int) -> Operand:
    """A complex parameter."""
    return Operand(shape, torch.complex128)


def statistics(*shape: int) -> Operand:
    """A buffer; positive, for it may be a variance."""
    return Operand(shape, low=0.5, high=2.0, role="buffer")


def given(*shape: int) -> Operand:
    """A floating-point input of the model."""
    return Operand(shape, role="input")


def indices(*shape: int, below: int) -> Operand:
    """An integer input of the model."""
    return Operand(shape, torch.int64, 0, below - 1, role="input")


@dataclass(frozen=True)
class Sample:
    """One call of an operator, or of several that work together.

    Attributes:
        name: tells the sample from all others.
        overload: the overload whose rule is to be used; None where several work together.
        args: of the call: operands, at any depth, and what stays as it is.
        kwargs: likewise.
        call: what is analysed; by default the overload.
        reference: what is run on real tensors where the operator itself needs another device.
        split: by operand or output, a finer shape in whose axes freedoms are looked for.
        missing: freedoms that the analysis is known to miss, with the reason.
        search: look for missing freedoms; it takes longer than the rest.
    """

    name: str
    overload: OpOverload | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[..., Any] | None = None
    reference: Callable[..., Any] | None = None
    split: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    search: bool = True

    @cached_property
    def operands(self) -> dict[str, Operand]:
        """All operands, named after their arguments and numbered inside lists."""
        return {
            self._name(path): leaf
            for path, leaf in pytree.tree_leaves_with_path((self.args, dict(self.kwargs)))
            if isinstance(leaf, Operand)
        }

    def _name(self, path: Sequence[Any]) -> str:
        where, *rest = [getattr(key, "idx", getattr(key, "key", None)) for key in path]
        if where == 0:
            rest[0] = f"x{rest[0]}"
            if self.overload is not None:
                rest[0] = self.overload._schema.arguments[path[1].idx].name
        return "_".join(str(item) for item in rest)

    @cached_property
    def _tree(self) -> tuple[list[Any], Any]:
        return pytree.tree_flatten((self.args, dict(self.kwargs)))

    @cached_property
    def _writes(self) -> bool:
        return self.overload is not None and self.overload._schema.is_mutable

    def analysed(self, operands: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of the call, as the analysis sees it."""
        return self._run(operands, self.call or self.overload)

    def real(self, operands: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of the real operator."""
        return self._run(operands, self.reference or self.call or self.overload)

    def _run(self, operands: Mapping[str, Tensor], function: Any) -> list[Tensor]:
        leaves, tree = self._tree
        named = iter(self.operands)
        filled = [
            self._own(leaf, operands[next(named)]) if isinstance(leaf, Operand) else leaf
            for leaf in leaves
        ]
        args, kwargs = pytree.tree_unflatten(filled, tree)
        if self.overload is None:
            outputs = function(*args, **kwargs)
        else:
            # Below autograd, composite operators are not taken apart before the analysis sees
            # them, as is the case in inference mode; so their rules are tried as well.
            with torch._C._AutoDispatchBelowAutograd():
                outputs = function(*args, **kwargs)
        return [item for item in pytree.tree_leaves(outputs) if isinstance(item, Tensor)]

    def _own(self, operand: Operand, tensor: Tensor) -> Tensor:
        """A tensor that the operator may write to."""
        writes = self._writes and operand.role == "parameter"
        return operand.seen(tensor.clone() if writes else tensor)


def sample(overload: OpOverload, *args: Any, **options: Any) -> Sample:
    """A call of one overload; keywords that are fields of `Sample` go there, others to the call."""
    fields = {name: options.pop(name) for name in list(options) if name in _OPTIONS}
    return Sample(str(overload).removeprefix("aten."), overload, args, options, **fields)


_OPTIONS = ("call", "reference", "split", "missing", "search")


def program(name: str, call: Any, *args: Any, **options: Any) -> Sample:
    """Several operators that work together."""
    return Sample(name, None, args, call=call, **options)
