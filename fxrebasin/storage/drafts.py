"""Folders for what is being written, beside its place; those of runs that were killed go."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fxrebasin.storage.locks import CAN_LOCK, lock
from fxrebasin.storage.placing import take_back_plan

LOCK = ".lock"
_DRAFTS = ".fxrebasin-"
_NEW_DRAFTS = ".new-fxrebasin-"


@contextmanager
def drafts_folder(parent: Path) -> Iterator[Path]:
    """A folder that is locked while its process lives; those of processes that died are removed.

    It is beside the places of what is written, or as near to them as there are folders yet.
    """
    parent = next(folder for folder in (parent, *parent.absolute().parents) if folder.is_dir())
    remove_leftovers(parent)
    made = Path(tempfile.mkdtemp(dir=parent, prefix=_NEW_DRAFTS))
    with ExitStack() as stack:
        if CAN_LOCK:
            lock(stack.enter_context((made / LOCK).open("w")))
        # It has the name of one that may be removed only when it is locked.
        folder = made.rename(parent / made.name.replace(_NEW_DRAFTS, _DRAFTS, 1))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Remove what runs left that were killed; what is locked belongs to one that still writes."""
    if not CAN_LOCK:
        return
    for folder in parent.glob(f"{_DRAFTS}*"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as held:
            lock(held, wait=False)
            take_back_plan(folder)
            shutil.rmtree(folder, ignore_errors=True)
