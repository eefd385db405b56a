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
            _remove(folder)


def remove_leftovers(parent: Path) -> None:
    """Remove what runs left that were killed; what is locked belongs to one that still writes."""
    if not CAN_LOCK:
        return
    for folder in parent.glob(f"{_DRAFTS}*"):
        with contextlib.suppress(OSError):
            folder.rmdir()  # only what is empty, and so has no lock any more
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as held:
            lock(held, wait=False)
            take_back_plan(folder)
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: without that, nobody would ever remove what a kill leaves."""
    for item in list(folder.iterdir()):
        if item.name == LOCK:
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                item.unlink()
    shutil.rmtree(folder, ignore_errors=True)
