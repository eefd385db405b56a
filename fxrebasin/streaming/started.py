"""Whether this process was started as one of several. Nothing here needs torch."""

from __future__ import annotations

import os

from fxrebasin.errors import InputError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def are_several() -> bool:
    """Whether this process was started as one of several, as `torchrun` does.

    Raises:
        InputError: it says so, but not how to find the others.

    Example:
        >>> are_several()
        False
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if "RANK" not in os.environ or not count.isdecimal() or int(count) < 2:
        return False
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set; start the command by "
            "torchrun -m fxrebasin"
        )
    return True
