"""The header of a safetensors file, whose metadata the library writes in an order of chance."""

from __future__ import annotations

import json
from pathlib import Path

_LENGTH = 8
_METADATA = "__metadata__"


def settled(payload: bytes) -> bytes:
    """The same file with its metadata in the order of their names: the same bytes every time.

    Args:
        payload: of a safetensors file.

    Example:
        >>> import safetensors.torch
        >>> metadata = {str(n): "x" for n in range(20)}
        >>> len({settled(safetensors.torch.save({}, metadata)) for _ in range(9)})
        1
    """
    end = _LENGTH + int.from_bytes(payload[:_LENGTH], "little")
    return payload[:_LENGTH] + _ordered(payload[_LENGTH:end]) + payload[end:]


def settle(path: Path) -> None:
    """Do that to a file, in its place.

    Args:
        path: of a safetensors file.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = file.read(length)
        file.seek(_LENGTH)
        file.write(_ordered(header))


def _ordered(header: bytes) -> bytes:
    """A header of the same length, or the same one where it was written in another style."""
    content = json.loads(header)
    metadata = content.get(_METADATA)
    if metadata:
        content = {**content, _METADATA: dict(sorted(metadata.items()))}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return text.ljust(len(header)) if len(text) <= len(header) else header
