"""The models, weights and inputs that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from fxrebasin.models.input_shapes import ExampleInputs


def example_inputs(module: nn.Module, input_shapes: tuple[str, ...]) -> ExampleInputs:
    """Tensors of the shapes that were given, or nothing, to have them inferred."""
    from fxrebasin.models.input_shapes import draw_inputs, parse_shape

    return draw_inputs(module, [parse_shape(text) for text in input_shapes])


def load_model(name: str, weights: Path | None) -> nn.Module:
    """A model by its name, with weights of a file if there is one."""
    from fxrebasin.models.by_name import build_model

    module = build_model(name)
    if weights is not None:
        from fxrebasin.storage.checkpoint import load_weights

        load_weights(module, weights)
    return module
