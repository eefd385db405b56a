"""Run operators on meta tensors: shapes, strides and dtypes of results, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import NoneType
from typing import Any, TypeAlias

import torch

from fxrebasin.errors import FxRebasinError
from fxrebasin.running.index_bounds import check_indices

_Form: TypeAlias = Any
"""What an argument is, without data: hashable. A `_Tensor`, a tuple of forms, or a value."""


@dataclass(frozen=True)
class _Tensor:
    """The form of a meta tensor that owns its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> torch.Tensor:
        """A new tensor of this form."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _NoFormError(FxRebasinError):
    """An argument or a result that no form describes."""


def on_meta(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operator on meta tensors of the form of its arguments.

    Torch takes up to milliseconds for one. Layers repeat, so the forms of results are remembered
    where an operator's schema says that these share no memory with its arguments.
    """
    if func in _IN_PLACE_ACTIVATIONS and args[0].is_floating_point():
        return _as_meta(args[0])
    check_indices(func, args, kwargs)
    if _makes_new(func):
        try:
            forms = tuple(map(_form, args)), tuple((k, _form(v)) for k, v in kwargs.items())
            return _made(_results(func, *forms, torch.get_default_dtype()))
        except _NoFormError:
            pass
    return _run(func, [_as_meta(value) for value in args], dict(kwargs))


@lru_cache(maxsize=4096)
def _results(
    func: torch._ops.OpOverload,
    args: tuple[_Form, ...],
    kwargs: tuple[tuple[str, _Form], ...],
    default: torch.dtype,
) -> _Form:
    """The forms of the results; they may depend on the default dtype."""
    made = [_made(form) for form in args]
    found = _run(func, made, {name: _made(form) for name, form in kwargs})
    return _form(found)


def _run(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    given = kwargs
    kwargs = {name: _as_meta(value) for name, value in given.items()}
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("meta")
    if func is torch.ops.aten.native_batch_norm.default and not args[5]:
        # A real one returns no statistics in eval mode; the one on meta tensors does.
        empty = torch.empty(0, dtype=args[0].dtype, device="meta")
        return torch.empty_like(args[0]), empty, empty.clone()
    result = func(*args, **kwargs)
    for argument in func._schema.arguments:
        if argument.is_out and isinstance(given.get(argument.name), torch.Tensor):
            _take_form(given[argument.name], kwargs[argument.name])
    return result


def _take_form(out: torch.Tensor, like: torch.Tensor) -> None:
    """Give a tensor that an operator writes its result to the size that this one got."""
    if out.shape != like.shape:
        out.resize_(like.shape)
        if out.stride() != like.stride():
            out.as_strided_(like.shape, like.stride())


@cache
def _makes_new(func: torch._ops.OpOverload) -> bool:
    """Whether all results are tensors with memory of their own, by the schema."""
    schema = func._schema
    every = (*schema.arguments, *schema.returns)
    return (
        func.namespace == "aten"
        and bool(schema.returns)
        and all(item.alias_info is None for item in every)
        and all(str(item.type) in ("Tensor", "List[Tensor]") for item in schema.returns)
    )


def _form(value: Any) -> _Form:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_conj() or value.is_neg():
            raise _NoFormError
        return _Tensor(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return (type(value), *map(_form, value))
    if isinstance(value, _PLAIN):
        return (type(value), value)
    raise _NoFormError


_PLAIN = (
    *(bool, int, float, complex, str, NoneType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


def _made(form: _Form) -> Any:
    if isinstance(form, _Tensor):
        return form.make()
    kind, *items = form
    if kind in (list, tuple):
        return kind(map(_made, items))
    return items[0]


def _as_meta(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_meta(item) for item in value]
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


_IN_PLACE_ACTIVATIONS = tuple(
    getattr(torch.ops.aten, f"{name}_").default
    for name in (
        *("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "mish", "elu"),
        *("leaky_relu", "sigmoid", "tanh"),
    )
)
