"""Models without memory for their parameters, which are as large as these say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fxrebasin.errors import InputError
from fxrebasin.models.by_name import build_model
from fxrebasin.running.messages import first_lines


class ValuelessError(InputError):
    """A model cannot be built without values."""


@contextmanager
def without_values() -> Iterator[None]:
    """Put parameters on the meta device as modules of this thread register them.

    Buffers, and what constructors compute with tensors, keep their values, which `torch.device`
    as a context would take from them: constants decide about symmetries.

    Example:
        >>> with without_values():
        ...     net = nn.BatchNorm1d(3)
        >>> net.weight.is_meta, net.running_var
        (True, tensor([1., 1., 1.]))
    """
    own = threading.get_ident()

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != own or parameter.is_meta or nn.parameter.is_lazy(parameter):
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook: Any = on_meta  # which may return a parameter, other than the annotation of torch says
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def build_without_values(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """Build the model that a name stands for, with parameters on the meta device.

    Args:
        name: as for `build_model`.
        trust_remote_code: as for `build_model`.

    Raises:
        InputError: as `build_model` does.
        ValuelessError: a constructor computes with its parameters.

    Example:
        >>> build_without_values("torch.nn:Linear?in_features=3&out_features=2").weight.is_meta
        True
    """
    try:
        with without_values():
            model = build_model(name, trust_remote_code=trust_remote_code)
    except (NotImplementedError, RuntimeError) as error:
        raise ValuelessError(
            f"{name} cannot be built without values for its parameters: {first_lines(error)}"
        ) from error
    return _all_without_values(model)


def _all_without_values(model: nn.Module) -> nn.Module:
    """Parameters that were there before, as those of a module that is only handed out."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                meta = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                module._parameters[name] = meta
    return model
