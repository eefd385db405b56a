"""What went wrong where in a model: exceptions, module paths and tensors for messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


def module_path(model: nn.Module, error: BaseException) -> str:
    """Path of the innermost submodule of `model` that was running; "" for the model itself."""
    names = {id(module): name for name, module in model.named_modules()}
    path = ""
    traceback = error.__traceback__
    while traceback is not None:
        path = names.get(id(traceback.tb_frame.f_locals.get("self")), "") or path
        traceback = traceback.tb_next
    return path


def first_lines(error: BaseException, count: int = 3) -> str:
    """Type and first lines of the message of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, " ".join(lines[:count])]).rstrip(": ")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's, torch's on a device, or on the CPU.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory")
    )


def describe(value: Any) -> str:
    """A value in a message: `float32[2, 3, 224, 224]` for a tensor; containers by their items.

    Example:
        >>> describe((torch.zeros(2, 3), {"mask": None}))
        '(float32[2, 3], {mask: None})'
    """
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        items = ", ".join(f"{key}: {describe(item)}" for key, item in value.items())
        return f"{{{items}}}"
    if isinstance(value, tuple | list):
        items = ", ".join(map(describe, value))
        return f"({items})" if isinstance(value, tuple) else f"[{items}]"
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


def describe_call(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A call of the model with its inputs described: `LeNet(float32[2, 3, 8, 8], mask=None)`."""
    values = [describe(value) for value in args]
    values += [f"{name}={describe(value)}" for name, value in kwargs.items()]
    return f"{type(model).__name__}({', '.join(values)})"


def has_tensor(value: Any) -> bool:
    """Whether a nested value holds a tensor."""
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def attempt(call: Callable[[], object]) -> Exception | None:
    """What a call raises, or None: for the user's code, which may raise anything."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the one place where this is meant
        return error
    return None
