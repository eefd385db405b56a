"""The base of modes that watch the operators of a model, and may do something else instead."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fxrebasin.running.flex import sees_flex_attention


class OperatorMode(TorchDispatchMode):
    """Dispatch mode that is told of every operator, those of `flex_attention` included.

    Example:
        >>> class Names(OperatorMode):
        ...     def called(self, func, args, kwargs):
        ...         print(func, len(args), kwargs)
        ...         return func(*args, **kwargs)
        >>> with Names():
        ...     total = torch.ones(2).sum()
        aten.ones.default 1 {'device': device(type='cpu'), 'pin_memory': False}
        aten.sum.default 1 {}
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)  # type: ignore[no-untyped-call]
        sees_flex_attention(cls)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.called(func, tuple(args), dict(kwargs or {}))

    @abstractmethod
    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What an operator returns.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments, in a dict of their own.
        """
