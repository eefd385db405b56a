"""What a model asks torch for before any operator runs: literals, and the data of tensors.

The data of constants that a model makes are kept while its activations have none, and reads of data
that no dispatch mode sees are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxrebasin.running.devices import OwnDevice
from fxrebasin.running.literals import with_literals
from fxrebasin.running.numberless import READS


class FunctionWatch(OwnDevice):
    """Makes literals on the CPU that the model wants where its activations are: on meta.

    `torch.tensor([0, 2], device=x.device)` and the list in `x[:, [0, 2]]` become tensors inside
    torch's C++, where no dispatch mode sees their data.
    """

    def __init__(self, device: torch.device, on_read: Callable[[Tensor, str], None]) -> None:
        """Watch the functions of torch that are called.

        Args:
            device: where the model is told that its activations are.
            on_read: called with a tensor whose data Python is about to get, and by which method.
        """
        super().__init__(device)
        self._on_read = on_read

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in READS:
            self._on_read(args[0], READS[func])
        elif func is Tensor.__deepcopy__:
            return args[1].setdefault(id(args[0]), args[0].clone())
        made, args, options = with_literals(func, args, kwargs)
        if made is not func:
            return made(*args, **options)
        return super().__torch_function__(func, types, args, options)
