"""What a constant holds, told by bits: where it varies, and a digest of all of it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def varying_axes_of(tensor: Tensor) -> tuple[int, ...]:
    """The axes along which a tensor is not one value repeated.

    Args:
        tensor: with values, of any dtype.

    Example:
        >>> varying_axes_of(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
        (0,)
    """
    axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    if not axes:
        return ()
    bits = bits_of(tensor)
    return tuple(axis for axis in axes if not bool((bits == bits.narrow(axis, 0, 1)).all()))


def has_bits(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at bit by bit."""
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)


def bits_of(tensor: Tensor) -> Tensor:
    """The values of a tensor as integers, which are equal where the bits are.

    Args:
        tensor: with values, of any dtype. Complex numbers get one more axis, of size 2.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.element_size()])


def digest_of(tensor: Tensor) -> str:
    """A text that two tensors share when they hold the same numbers, in whatever dtype.

    Example:
        >>> digest_of(torch.tensor([1, 2])) == digest_of(torch.tensor([1, 2], dtype=torch.uint8))
        True
    """
    values = tensor.detach().resolve_conj().resolve_neg()
    if values.is_complex():
        values = torch.view_as_real(values.to(torch.complex128))
    wide = values.to("cpu", torch.float64 if values.is_floating_point() else torch.int64)
    found = hashlib.blake2b(repr(tuple(tensor.shape)).encode(), digest_size=16)
    found.update(b"floating" if wide.is_floating_point() else b"whole")
    found.update(wide.contiguous().numpy().data)
    return found.hexdigest()
