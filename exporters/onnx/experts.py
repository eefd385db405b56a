"""Mixtures of experts of transformers, in the one of their forms that a graph can hold."""

from __future__ import annotations

import copy

from torch import nn

_FORM = "_experts_implementation_internal"
_HELD_BY_GRAPHS = "batched_mm"


def choose_exportable_experts(model: nn.Module) -> None:
    """Let experts be products of batches of matrices; to be called inside `preserve`.

    Products in groups have no operator in ONNX, and a loop over the experts that were chosen looks
    at values. Which form is taken says the configuration that a module holds: it gets a copy, and
    leaving `preserve` gives it its own back.

    Args:
        model: any module; those without experts are left alone.
    """
    for module in model.modules():
        config = vars(module).get("config")
        if getattr(config, _FORM, None) not in (None, _HELD_BY_GRAPHS):
            own = copy.copy(config)
            setattr(own, _FORM, _HELD_BY_GRAPHS)
            vars(module)["config"] = own
