"""What the schemas of ATen operators say, and sets of operators that behave in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

SHAPED_LIKE = frozenset(
    overload
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones"),
        *("new_full", "new_empty", "new_empty_strided"),
    )
    for overload in [getattr(torch.ops.aten, name).default]
)
"""Operators that make a tensor of the shape of another, and do not read that."""

UNIFORM = frozenset(
    getattr(packet, overload)
    for name in ("zeros", "ones", "full", "empty", "scalar_tensor")
    for packet in [getattr(torch.ops.aten, name)]
    for overload in ("default", "memory_format")
    if overload in packet.overloads()
)
"""Operators that make a tensor that holds one number throughout."""

OVERWRITING = frozenset(
    overload
    for name in ("copy_", "zero_", "fill_")
    for packet in [getattr(torch.ops.aten, name)]
    for overload in [getattr(packet, item) for item in packet.overloads()]
)
"""Operators that write without reading what was there."""

LOOKING = frozenset(
    overload
    for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
    for packet in [getattr(torch.ops.aten, name)]
    for overload in [getattr(packet, item) for item in packet.overloads()]
)
"""Operators by which a model looks at data: what it does next may depend on the inputs."""

TRUTHS = frozenset({torch.ops.aten.nonzero.default})
"""Operators that tell where their operand is not zero."""

CHOOSING = (
    TRUTHS
    | frozenset(
        overload
        for name in ("index", "index_put", "index_put_", "masked_select", "masked_scatter")
        for packet in [getattr(torch.ops.aten, name)]
        for overload in [getattr(packet, item) for item in packet.overloads()]
    )
    | {torch.ops.aten.masked_scatter_.default, torch.ops.aten._index_put_impl_.default}
)
"""Operators that choose elements by masks."""

INDIFFERENT = frozenset(
    getattr(packet, item)
    for name in (
        *("is_pinned", "is_same_size", "_assert_tensor_metadata", "_has_same_storage_numel"),
        *("sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "is_contiguous", "dim"),
        *("is_coalesced", "dense_dim", "sparse_dim", "_has_compatible_shallow_copy_type"),
        *("is_strides_like_format", "is_non_overlapping_and_dense", "record_stream"),
        *("_assert_async", "_assert_scalar", "_linalg_check_errors"),
    )
    for packet in [getattr(torch.ops.aten, name, None)]
    if packet is not None
    for item in packet.overloads()
)
"""Operators that answer questions about layouts and devices, or raise; nothing is computed."""


def tensors_in(found: Any) -> list[Tensor]:
    """The tensors among an operator's arguments or results, which nest in lists at most."""
    if isinstance(found, Tensor):
        return [found]
    tensors: list[Tensor] = []
    if isinstance(found, dict):
        found = found.values()
    elif not isinstance(found, list | tuple):
        return tensors
    for item in found:
        if isinstance(item, Tensor):
            tensors.append(item)
        elif isinstance(item, list | tuple | dict):
            tensors += tensors_in(item)
    return tensors


@cache
def name_of(func: Any) -> str:
    """The operator's name, for example `aten.addmm.default`."""
    return str(func)


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a tensor; empty if its layout has none."""
    return tensor.stride() if tensor.layout is torch.strided else ()


def bind(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by schema name, with defaults."""
    bound = dict(zip(_defaults(func), args, strict=False))
    for name, default in islice(_defaults(func).items(), len(args), None):
        value = options.get(name, default)
        if value is not _MISSING:
            bound[name] = value
    return bound


_MISSING = object()


@cache
def _defaults(func: Any) -> dict[str, Any]:
    """The names of all arguments in their order, with defaults where they have one."""
    return {
        argument.name: argument.default_value if argument.has_default_value() else _MISSING
        for argument in func._schema.arguments
    }


def writes(func: Any) -> bool:
    """Whether an operator writes to one of its arguments."""
    return bool(_touched_names(func))


def touched_by(func: Any, bound: Mapping[str, Any]) -> list[Tensor]:
    """All that an operator may write to, whether or not it returns it."""
    return tensors_in([bound.get(name) for name in _touched_names(func)])


@cache
def _touched_names(func: Any) -> tuple[str, ...]:
    return tuple(
        str(argument.name)
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@cache
def written_names(func: Any) -> tuple[str, ...]:
    """Arguments that an operator writes to and returns, so that its rule says what they hold.

    Running statistics, which are written in training only, are not returned.
    """
    returned = {
        alias
        for item in func._schema.returns
        if item.alias_info is not None
        for alias in item.alias_info.before_set
    }
    return tuple(
        str(argument.name)
        for argument in func._schema.arguments
        if argument.name in _touched_names(func) and argument.alias_info.before_set & returned
    )


def written_by(func: Any, bound: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that an operator writes to and returns."""
    return [bound[name] for name in written_names(func) if isinstance(bound.get(name), Tensor)]


@cache
def viewed_by(func: Any) -> str:
    """The name of the argument that the outputs are views of, if any."""
    for argument in func._schema.arguments:
        if argument.alias_info is not None and not argument.alias_info.is_write:
            return str(argument.name)
    return ""
