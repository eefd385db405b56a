"""The state of a model before it runs: which tensors there are, and what may be moved in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import torch
from torch import Tensor, nn

from fxrebasin.gather import identity_of


class Role(Enum):
    """What the analysis takes a tensor of a model for.

    STATE: permuted with the units that meet it. STATISTICS: a buffer that the state dict keeps,
    which is state where a normalisation reads it. CANDIDATE: such a buffer that is state wherever
    it is read. CONSTANT: its values are those that the model was analysed with.
    """

    STATE = auto()
    STATISTICS = auto()
    CANDIDATE = auto()
    CONSTANT = auto()


@dataclass(frozen=True, eq=False)
class Held:
    """One tensor of a model.

    Args:
        names: by which the model holds it; several where one tensor, or the same view of one
            memory, is held several times.
        tensor: itself.
        role: what it is taken for.
        persistent: whether a state dict holds it.
        overlaps: the name of another tensor that shares some of its memory, in another view.
    """

    names: tuple[str, ...]
    tensor: Tensor
    role: Role
    persistent: bool
    overlaps: str = ""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


def held_tensors(model: nn.Module, declared: Collection[str] = ()) -> list[Held]:
    """All parameters and buffers of a model, each once.

    A buffer that no state dict keeps is a constant: moving its values would move nothing for those
    who load the state dict. Tensors that are different views of one memory cannot move, since
    `load_state_dict` writes over one through the other.

    Args:
        declared: names of buffers that are state, if a state dict keeps them.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named = [*parameters.items(), *model.named_buffers(remove_duplicate=False)]
    groups: dict[object, tuple[list[str], Tensor]] = {}
    for name, tensor in named:
        groups.setdefault(identity_of(tensor), ([], tensor))[0].append(name)
    kept = set(model.state_dict(keep_vars=True))
    overlaps = dict(_overlapping([tensor for _, tensor in groups.values()]))
    first = [names[0] for names, _ in groups.values()]
    found = []
    for index, (names, tensor) in enumerate(groups.values()):
        persistent = any(name in kept for name in names)
        role = Role.STATE
        if not any(name in parameters for name in names):
            role = _role(names, tensor, persistent, declared)
        other = first[overlaps[index]] if index in overlaps else ""
        found.append(Held(tuple(names), tensor, role, persistent, other))
    return found


def with_constants(held: Sequence[Held], constants: Collection[str]) -> list[Held]:
    """The same, with some buffers as constants unless a normalisation reads them.

    Args:
        held: the tensors of a model.
        constants: names, the first that each buffer has.
    """
    return [
        replace(item, role=Role.STATISTICS)
        if item.role is Role.CANDIDATE and item.name in constants
        else item
        for item in held
    ]


def _role(
    names: Sequence[str], tensor: Tensor, persistent: bool, declared: Collection[str]
) -> Role:
    if not persistent:
        return Role.CONSTANT
    if any(name in declared for name in names):
        return Role.STATE
    number = tensor.is_floating_point() or tensor.is_complex()
    return Role.CANDIDATE if number and tensor.numel() > 1 else Role.STATISTICS


def _overlapping(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Pairs of the index of a tensor and that of another which has some of its memory."""
    by_storage: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        identity = identity_of(tensor)
        if isinstance(identity, tuple):
            by_storage.setdefault(identity[0], []).append(index)
    for members in by_storage.values():
        for index in members:
            for other in members:
                if other != index and _overlap(tensors[index], tensors[other]):
                    yield index, other


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two views of one memory have elements in common."""
    (start, stop), (begin, end) = _reach(first), _reach(second)
    if stop <= begin or end <= start:
        return False
    if first.element_size() != second.element_size():
        return True
    marks = torch.zeros(max(stop, end) // first.element_size(), dtype=torch.bool)
    for tensor in (first, second):
        view = marks.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        if tensor is second:
            return bool(view.any())
        view.fill_(True)
    return False


def _reach(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a storage that a tensor reaches, and the first behind it."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    size = tensor.element_size()
    return int(tensor.storage_offset()) * size, (int(last) + 1) * size
