"""Subclasses of tensors: which of them behave like tensors."""

from __future__ import annotations

import torch


def has_own_operators(kind: type) -> bool:
    """Whether a class of tensors says itself what operators do to its instances."""
    own = getattr(kind, "__torch_dispatch__", None)
    return own is not torch._C._disabled_torch_dispatch_impl


def behaves_otherwise(kind: type) -> bool:
    """Whether operators or functions of torch do something else to instances of a class."""
    functions = getattr(kind, "__torch_function__", None)
    plain = (torch.Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)
    return has_own_operators(kind) or getattr(functions, "__func__", functions) not in plain
