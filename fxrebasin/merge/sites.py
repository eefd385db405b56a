"""Layers whose units are measured, and the hooks that measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fxrebasin.merge.moments import Moments


@dataclass(frozen=True)
class Site:
    """A layer whose units are measured.

    Args:
        name: of the module.
        axis: of the units.
        at_input: measure the input of the layer; otherwise its output.
    """

    name: str
    axis: int
    at_input: bool


@contextmanager
def measuring(
    model: nn.Module, sites: Sequence[Site], take: Callable[[Site, Moments], Any]
) -> Iterator[None]:
    """Hand moments at sites to a function; what it returns is applied to the output.

    Args:
        model: that is run inside.
        sites: of the model.
        take: from a site and the moments there to a function of the output, or None.
    """
    with ExitStack() as stack:
        for site in sites:
            stack.callback(hooked(model, site, take).remove)
        yield


def hooked(model: nn.Module, site: Site, take: Callable[[Site, Moments], Any]) -> RemovableHandle:
    """The hook that does so at one site.

    Args:
        model: that is run.
        site: of the model.
        take: see `measuring`.
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (value,) = (*args, *kwargs.values())[:1]
        take(site, Moments.of(value, site.axis))

    def after(module: nn.Module, args: tuple[Any, ...], given: torch.Tensor) -> Any:
        change = take(site, Moments.of(given, site.axis))
        return None if change is None else change(given)

    module = model.get_submodule(site.name)
    if site.at_input:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
