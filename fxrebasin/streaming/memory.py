"""How much memory there is, and numbers of bytes as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fxrebasin.errors import InputError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b|bytes)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_GROUP = Path("/sys/fs/cgroup")


def parse_bytes(text: str) -> int:
    """A number of bytes.

    Args:
        text: such as 3GiB, 500MB, 1.5G (of 1024³) or 2000000.

    Raises:
        InputError: it is none.

    Example:
        >>> parse_bytes("3GiB"), parse_bytes("500MB"), parse_bytes("1.5k")
        (3221225472, 500000000, 1536)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is no size of memory; write such as 3GiB or 500MB")
    number, unit, binary, byte = match.groups()
    # As most programs have it: K is 1024, and so is KiB; KB is 1000.
    base = 1000 if byte and not binary else 1024
    found = int(float(number) * base ** _POWERS[unit.lower()])
    if not found:
        raise InputError(f"{text!r}: no memory is too little")
    return found


def available_memory() -> int | None:
    """Bytes that a process can take now; None where the system does not say.

    Example:
        >>> (available_memory() or 1) > 0
        True
    """
    found = [size for size in (_of_machine(), _of_group()) if size is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _of_group() -> int | None:
    """What a container may take; files that are kept in memory do not count, as they can go."""
    try:
        most = (_GROUP / "memory.max").read_text(encoding="utf-8").strip()
        return None if most == "max" else int(most)
    except (OSError, ValueError):
        return None
