"""How much work a run of a model is, counted, so that it is the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from fxrebasin.running.operators import tensors_in
from fxrebasin.running.watching import OperatorMode

# What a core does in the time that it takes for one product and one sum of a matrix product.
_PER_ELEMENT = 50.0  # for an element that is read, changed and written
_PER_OPERATOR = 1e6  # for an operator to be called, with modes that watch it

# Ten seconds on a core or two. A row of resnet18 at 32 pixels is 1e9.
_BUDGET = 2.5e11
_ONE_SECOND = 2.5e10  # of one core
_CALLS = 4  # so that there are rows of several kinds
_MOST_ELEMENTS = 1 << 25  # of one tensor in float64, in a run


class Effort(OperatorMode):
    """Dispatch mode that counts the work of a run.

    Products of matrices, convolutions and attention count as `torch.utils.flop_counter` says, and
    every operator by the elements that it writes.

    Example:
        >>> effort = Effort()
        >>> with effort:
        ...     product = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> effort.largest, effort.operators
        (12, 3)
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0
        self.operators = 0
        self.largest = 0
        """Elements of the largest tensor that was made."""

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operator, and count it."""
        result = func(*args, **kwargs)
        sizes = [tensor.numel() for tensor in tensors_in([result])]
        self.operators += 1
        self.largest = max([self.largest, *sizes])
        self.operations += _PER_ELEMENT * sum(sizes)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        return result


def takes_long(effort: Effort, rows: int) -> bool:
    """Whether a model takes more than some seconds for rows.

    Args:
        effort: of one row.
        rows: of the call that is asked about.

    Example:
        >>> takes_long(Effort(), 1000)
        False
    """
    return effort.operations * rows > 2 * _ONE_SECOND


@dataclass(frozen=True)
class Portions:
    """How many rows are worth a comparison, in how many calls.

    Attributes:
        rows: of each call.
        calls: as many as are affordable, and no more than are needed.
    """

    rows: int
    calls: int


def portions(effort: Effort, ran: int, rows: int, *, of_size: int | None = None) -> Portions:
    """Divide rows into calls, fewer where a row takes long.

    Args:
        effort: of one call.
        ran: rows of that call.
        rows: that are wanted in all.
        of_size: rows of a call, if the model takes no other number.

    Example:
        >>> portions(Effort(), 2, 256)
        Portions(rows=64, calls=4)
        >>> portions(Effort(), 2, 256, of_size=2)
        Portions(rows=2, calls=128)
    """
    per_row = effort.operations / ran
    overhead = effort.operators * _PER_OPERATOR
    if of_size is None:
        in_memory = _MOST_ELEMENTS * ran // max(effort.largest, 1)
        in_time = int((_BUDGET - overhead) / max(per_row, 1.0))
        of_size = max(min(-(-rows // _CALLS), in_memory, in_time), 2)
    affordable = int(_BUDGET / max(of_size * per_row + overhead, 1.0))
    return Portions(of_size, max(min(-(-rows // of_size), affordable), 1))
