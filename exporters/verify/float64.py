"""Run a model as if it had been written in float64 throughout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from fxrebasin.errors import EquivalenceError
from fxrebasin.exporters.verify.pages import Pages, may_be_paged
from fxrebasin.running.own_structure import restructured
from fxrebasin.running.subclasses import like
from fxrebasin.running.watching import OperatorMode
from fxrebasin.wording import spoken

WIDENED: Mapping[torch.dtype, torch.dtype] = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float8_e4m3fn: torch.float64,
    torch.float8_e5m2: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}

# An operator whose dtype argument reinterprets bits: widening it would change the function.
_BIT_CASTS = frozenset({"aten::view.dtype"})


def _grouped_products(
    rows: torch.Tensor,
    stack: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`[n, k], [g, k, m] -> [n, m]`: rows up to each offset times the next matrix."""
    if offs is None or bias is not None or (rows.dim(), stack.dim()) != (2, 3):
        raise EquivalenceError(
            f"products in groups of shapes {tuple(rows.shape)} and {tuple(stack.shape)} cannot be "
            "run in float64; "
            f"{spoken('pass verify=False, and ', '')}compare outputs in float32 yourself."
        )
    ends = [0, *offs.tolist()]
    return torch.cat([rows[a:b] @ m for a, b, m in zip(ends, ends[1:], stack, strict=False)])


# Operators whose kernels refuse float64.
_IN_FLOAT64: dict[Any, Callable[..., Any]] = {torch.ops.aten._grouped_mm.default: _grouped_products}


class TrueFloat64(OperatorMode):
    """Dispatch mode in which every floating-point operator works in float64.

    `model.double()` alone is not enough: a model that casts inside `forward` (the RMSNorm of
    Hugging Face computes its variance in float32) loses nine digits there, and permuting its units
    then shows as an error of 1e-7. Here every dtype argument that names a narrower floating-point
    type is replaced by float64, complex64 becomes complex128, and tensors that are narrower all the
    same (literals, tensors kept in closures, results of integer division) are widened when an
    operator meets them. Integer and boolean tensors are untouched. A widened tensor stands for its
    whole storage from then on, so that writes through views of it are seen by later reads and the
    narrow original is never written.

    Example:
        >>> with TrueFloat64():
        ...     torch.ones(2).to(torch.float16).dtype
        torch.float64
    """

    def __init__(self) -> None:
        super().__init__()
        self._wide_storages: dict[tuple[int, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operator on wide arguments."""
        schema = func._schema
        bit_cast = f"{schema.name}.{schema.overload_name}" in _BIT_CASTS
        wide_args, wide_kwargs = tree_map(
            lambda value: self._widen_argument(value, bit_cast), (args, kwargs)
        )
        result = _IN_FLOAT64.get(func, func)(*wide_args, **wide_kwargs)
        if any(output.alias_info is not None for output in schema.returns):
            return result  # a view or the tensor written to: its identity matters
        return tree_map(_widen_result, result)

    def _widen_argument(self, value: Any, bit_cast: bool) -> Any:
        if isinstance(value, torch.dtype):
            return value if bit_cast else WIDENED.get(value, value)
        if isinstance(value, torch.Tensor) and value.dtype in WIDENED:
            return self._wide_view(value)
        return value

    def _wide_view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The float64 tensor that stands for a narrow one, a view of the stand-in's storage."""
        if tensor.layout != torch.strided or tensor.is_meta:
            return tensor.to(WIDENED[tensor.dtype])
        storage = tensor.untyped_storage()
        key = (storage._cdata, tensor.dtype)
        if key not in self._wide_storages:
            count = storage.nbytes() // tensor.element_size()
            flat = tensor.detach().as_strided((count,), (1,), 0)
            # the narrow tensor is kept alive so that its storage's address stays its own
            self._wide_storages[key] = (flat, flat.to(WIDENED[tensor.dtype]))
        wide = self._wide_storages[key][1]
        return wide.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _widen_result(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in WIDENED:
        return value.to(WIDENED[value.dtype])
    return value


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, in float64 or complex128 if it is floating-point or complex.

    Example:
        >>> widened(torch.ones(2)).dtype, widened(torch.arange(2)).dtype
        (torch.float64, torch.int64)
    """
    return tensor.detach().to(WIDENED.get(tensor.dtype, tensor.dtype), copy=True)


def float64_copy(
    model: nn.Module,
    pages: Pages | None = None,
    given: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> nn.Module:
    """A copy of `model` whose floating-point state is float64 (complex state: complex128).

    Parameters, buffers and tensors that are plain attributes are widened one by one while the
    module tree is copied, so that no float32 copy is made on the way; tied tensors stay tied. The
    model is left as it is.

    Args:
        model: left as it is.
        pages: if given, parameters take memory only while operators read them, inside this mode.
        given: the numbers of parameters without values, by name; with `pages` only.

    Example:
        >>> float64_copy(nn.Linear(2, 1)).weight.dtype
        torch.float64
    """
    state = {
        id(value): value
        for module in model.modules()
        for values in (module._parameters, module._buffers, vars(module))
        for value in values.values()
        if isinstance(value, torch.Tensor)
    }
    made = {key: _widen_state(value, pages) for key, value in state.items()}
    for name, parameter in model.named_parameters():
        if parameter.is_meta and name in given and pages is not None:
            dtype = WIDENED.get(parameter.dtype, parameter.dtype)
            made[id(parameter)] = like(parameter, pages.stand_in(given[name], dtype, parameter))
    return restructured(model, made)


def _widen_state(tensor: torch.Tensor, pages: Pages | None) -> torch.Tensor:
    if not isinstance(tensor, nn.Parameter):
        return widened(tensor)
    if pages is not None and may_be_paged(tensor):
        wide = pages.stand_in(tensor.detach(), WIDENED.get(tensor.dtype, tensor.dtype))
    else:
        wide = widened(tensor)
    return like(tensor, wide)
