"""Models whose weights are kept elsewhere, so that they are in memory once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.gather import storage_identity
from fxrebasin.models.untying import held_by_name
from fxrebasin.running.messages import attempt
from fxrebasin.running.own_structure import restructured
from fxrebasin.running.preserve import attributes_of, same_attributes, tensors_of
from fxrebasin.running.subclasses import like

# As narrow numbers and as float32 they are the same, and whatever reads them widens a part at a
# time.
_NARROW = (torch.bfloat16, torch.float16)
_HELD_ONCE = 2
"""References to a storage: by the tensor, and by what counts them."""


class Emptied:
    """A copy of a model without values in its parameters, and whether the model was let go.

    A model may hold a parameter where no copy of its modules reaches: in a closure, or in an object
    of its own. There it would be a constant. Then the parameter outlives the model.

    Args:
        model: left as it is.
        kept: names of tensors that keep their values.

    Attributes:
        model: the copy; the very parameters of the model where they have to keep their values.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> empty = Emptied(net)
        >>> empty.model.weight, empty.is_all_there_is()
        (Parameter containing:
        tensor(..., device='meta', size=(1, 2), requires_grad=True), False)
        >>> del net
        >>> empty.is_all_there_is()
        True
    """

    def __init__(self, model: nn.Module, kept: Collection[str] = ()) -> None:
        every = {id(tensor): tensor for tensor in tensors_of(model)}
        emptied = list(_emptied(model, kept)) if _loads_plainly(model) else []
        self._refs = [weakref.ref(tensor) for tensor in emptied]
        every.update({id(tensor): _without_values(tensor) for tensor in emptied})
        self.model = restructured(model, every)

    def is_all_there_is(self) -> bool:
        """Whether nothing but the model held the parameters; it has to be gone by now."""
        if any(ref() is not None for ref in self._refs):
            gc.collect()  # modules may refer to each other in cycles
        return all(ref() is None for ref in self._refs)


def is_emptied(model: nn.Module) -> bool:
    """Whether some parameters of a model have no values.

    Args:
        model: any module.
    """
    return any(parameter.is_meta for parameter in model.parameters())


def filled(model: nn.Module, stored: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of an emptied model that holds weights; all other tensors are those of the model.

    Args:
        model: from `Emptied`.
        stored: the weights by name.

    Raises:
        InputError: there is none for a parameter without values.
    """
    lost = [n for n, p in model.named_parameters() if p.is_meta and n not in stored]
    if lost:
        raise InputError(f"there are no values for {', '.join(lost[:5])}")
    tensors = {id(tensor): tensor for tensor in tensors_of(model)}
    for parameter in model.parameters():
        if parameter.is_meta:
            tensors[id(parameter)] = like(parameter, torch.empty_like(parameter, device="cpu"))
    result = restructured(model, tensors)
    result.load_state_dict(stored, strict=False)
    return result


def state_for(model: nn.Module, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What an emptied model would hold if it were filled: the weights themselves where they fit.

    Numbers of 16 bits stay so where the model has float32. Names of one parameter have one tensor,
    the last that would be loaded, and different parameters have different memory, as in the model.

    Args:
        model: from `Emptied`; its buffers are those that it is to have.
        stored: the weights by name.
    """
    own = model.state_dict(keep_vars=True)
    last = {id(tensor): name for name, tensor in own.items() if name in stored}
    made: dict[int, torch.Tensor] = {}
    used: set[tuple[object, ...]] = set()
    for tensor in (tensor for tensor in own.values() if isinstance(tensor, torch.Tensor)):
        if id(tensor) in made:
            continue
        value = tensor.detach()
        if tensor.is_meta:
            value = stored[last[id(tensor)]].detach()
            if not (value.dtype in _NARROW and tensor.dtype == torch.float32):
                value = value.to(tensor.dtype)
            value = value.clone() if storage_identity(value) in used else value
            used.add(storage_identity(value))
        made[id(tensor)] = value
    return {name: made[id(tensor)] for name, tensor in own.items() if id(tensor) in made}


def _emptied(model: nn.Module, kept: Collection[str]) -> Iterator[nn.Parameter]:
    """The parameters that may do without values: their memory is theirs alone."""
    names: dict[int, list[str]] = {}
    held = held_by_name(model)
    for name, tensor in held.items():
        names.setdefault(id(tensor), []).append(name)
    state = model.state_dict(keep_vars=True)
    for parameter in model.parameters():
        own = names[id(parameter)]
        loaded = all(state.get(name) is parameter for name in own)
        if loaded and not any(name in kept for name in own) and _holds_its_memory(parameter):
            yield parameter


def _holds_its_memory(tensor: torch.Tensor) -> bool:
    plain = type(tensor) is nn.Parameter and tensor.layout == torch.strided and tensor.is_cpu
    if not plain or tensor.grad is not None:
        return False
    storage = tensor.untyped_storage()
    whole = storage.nbytes() == tensor.nbytes and storage.resizable()
    return whole and torch._C._storage_Use_Count(storage._cdata) == _HELD_ONCE


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    form = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return like(tensor, form)


def _loads_plainly(model: nn.Module) -> bool:
    """Whether loading a state puts tensors into their places and does nothing else.

    A module may have code for that, which mostly knows the names of older releases.
    """
    found: list[bool] = []
    error = attempt(lambda: found.append(_puts_in_place(model) and _leaves_alone(model)))
    return error is None and found == [True]


def _puts_in_place(model: nn.Module) -> bool:
    twin = _on_meta(model)
    given = {
        name: _without_values(value) if isinstance(value, torch.Tensor) else value
        for name, value in twin.state_dict(keep_vars=True).items()
    }
    twin.load_state_dict(given, assign=True)
    own = twin.state_dict(keep_vars=True)
    return own.keys() == given.keys() and all(own[name] is given[name] for name in given)


def _leaves_alone(model: nn.Module) -> bool:
    twin = _on_meta(model)
    state = twin.state_dict(keep_vars=True)
    loaded = {id(value) for value in state.values()}
    others = [tensor for tensor in tensors_of(twin) if id(tensor) not in loaded]
    before, versions = attributes_of(twin), [tensor._version for tensor in others]
    twin.load_state_dict(dict(state))
    written = [tensor._version for tensor in others] != versions
    return not written and same_attributes(before, attributes_of(twin))


def _on_meta(model: nn.Module) -> nn.Module:
    return restructured(model, {id(t): _without_values(t) for t in tensors_of(model)})
