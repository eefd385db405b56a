"""Subclasses of tensors: which of them behave like tensors."""

from __future__ import annotations

import torch


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
