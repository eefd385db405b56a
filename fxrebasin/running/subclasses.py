"""Subclasses of tensors: which of them behave like tensors; other numbers in the place of one."""

from __future__ import annotations

import torch
from torch import nn


def like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """`data` as a parameter, if `tensor` is one, of its class, with its flags and attributes.

    A model may ask for any of these.

    Args:
        tensor: a parameter or a buffer.
        data: what is to be in its place.

    Example:
        >>> like(nn.Parameter(torch.ones(2), requires_grad=False), torch.zeros(2))
        Parameter containing:
        tensor([0., 0.])
    """
    if not isinstance(tensor, nn.Parameter):
        return data.detach()
    kind = type(tensor) if issubclass(type(tensor), nn.Parameter) else nn.Parameter
    result = torch.Tensor._make_subclass(kind, data.detach(), tensor.requires_grad)
    vars(result).update(vars(tensor))
    return result


def has_own_operators(kind: type) -> bool:
    """Whether a class of tensors defines what operators do to its instances."""
    own = getattr(kind, "__torch_dispatch__", None)
    return own is not torch._C._disabled_torch_dispatch_impl


def behaves_otherwise(kind: type) -> bool:
    """Whether operators or functions of torch do something else to instances of a class."""
    return has_own_operators(kind) or _functions_of(kind) not in (
        _functions_of(torch.Tensor),
        torch._C._disabled_torch_function_impl,
    )


def _functions_of(kind: type) -> object:
    found = getattr(kind, "__torch_function__", None)
    return getattr(found, "__func__", found)
