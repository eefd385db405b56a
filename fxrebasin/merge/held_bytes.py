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
        self.most = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the operator returns.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        result = func(*args, **kwargs)
        for storage in _storages(result):
            self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def look(self) -> None:
        """Add up what is held now."""
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._made.values()))


def bytes_of(value: Any) -> int:
    """Of the tensors in a nested value.

    Args:
        value: may hold them in containers.
    """
    return sum({s._cdata: s.nbytes() for s in _storages(value)}.values())


def _storages(value: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return [t.untyped_storage() for t in tensors if t.layout == torch.strided]
