"""Models without memory for their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Put parameters on the meta device as modules register them.

    `torch.device("meta")` as a context would take the values of buffers and of what constructors
    compute with tensors as well.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.detach().to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def forget_values(model: nn.Module) -> nn.Module:
    """Put the parameters of a model on the meta device; buffers keep their values.

    For constructors that ask on which device their parameters are, and go wrong on meta.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            meta = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            setattr(module, name, meta)
    return model
