"""How much memory what operators return takes while it is held."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from fxrebasin.running.watching import OperatorMode


class HeldBytes(OperatorMode):
    """Adds up what operators inside return, as long as something holds it.

    Attributes:
        most: that was ever found, in bytes.
        shared: something else, such as what another library made of it, was in the same memory.

    Example:
        >>> with HeldBytes() as memory:
        ...     kept = torch.ones(4)
        ...     let_go = torch.ones(5).sum()
        ...     memory.look()
        >>> memory.most
        20
    """

    def __init__(self) -> None:
        super().__init__()
        self.most, self.shared = 0, False
        self._made: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._others: dict[int, StorageWeakRef] = {}

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the operator returns.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        given = storages_in((args, kwargs))
        for storage in given:
            if storage._cdata not in self._made and storage._cdata not in self._others:
                self._others[storage._cdata] = StorageWeakRef(storage)
                self.shared |= self._holds(storage.data_ptr())
        result = func(*args, **kwargs)
        theirs = {storage._cdata for storage in given}
        for storage in storages_in(result):
            if storage._cdata not in theirs:
                made = (StorageWeakRef(storage), storage.nbytes(), storage.data_ptr())
                self._made[storage._cdata] = made
        return result

    def look(self) -> None:
        """Add up what is held now."""
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        self.most = max(self.most, sum(size for _, size, _ in self._made.values()))

    def _holds(self, address: int) -> bool:
        """Whether an address is in what is held."""
        return any(
            start <= address < start + size and not made.expired()
            for made, size, start in self._made.values()
        )


def bytes_of(value: Any) -> int:
    """Of the tensors in a nested value.

    Args:
        value: may hold them in containers.
    """
    return sum({s._cdata: s.nbytes() for s in storages_in(value)}.values())


def storages_in(value: Any) -> list[torch.UntypedStorage]:
    """The memory of the tensors in a nested value; those that are not strided have none here.

    Args:
        value: may hold them in containers.
    """
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return [t.untyped_storage() for t in tensors if t.layout == torch.strided]
