"""Drafts that are moved to their places together, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fxrebasin.errors import InputError
from fxrebasin.storage.content_names import outdated
from fxrebasin.storage.locks import alone
from fxrebasin.wording import spoken

_PLAN = ".plan"


@dataclass(frozen=True)
class Draft:
    """A file or folder that was written, and where it belongs.

    Args:
        draft: where it is.
        place: where it belongs.
        folder: for what is at that place.
        overwrite: whether that is replaced.
        owner: whether files of data belong to it.
    """

    draft: Path
    place: Path
    folder: Path
    overwrite: bool
    owner: bool = False


def refuse_devices(path: Path) -> None:
    """Check that a place is free or that of a file or a folder.

    Raises:
        InputError: a device, a pipe or the like is there.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(
            f"{path} is a device, a pipe or the like, which nothing takes the place of; choose "
            "another place"
        )


def put_in_place(drafts: Sequence[Draft]) -> None:
    """Let all appear, or none: what was done is undone if one cannot.

    A run that is killed meanwhile leaves a plan, by which the next one undoes what it did.
    """
    if not drafts:
        return
    place: Path | None = None
    try:
        for item in drafts:
            place = item.place
            refuse_devices(place)
            _settle(item)
        with alone({item.place.parent for item in drafts}), ExitStack() as undo:
            moves = [_move(item, number) for number, item in enumerate(drafts)]
            written = _write_plan(drafts, moves)
            for item, move in zip(drafts, moves, strict=True):
                place = item.place
                undo.callback(_take_back, move)
                _put(item, move)
            undo.pop_all()
            for folder in {item.place.parent for item in drafts}:
                _flush(folder)
            for plan in written:
                plan.unlink()
            _remove_outdated(drafts)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error}") from error


@dataclass(frozen=True)
class _Move:
    """What is done to put one in its place, as far as undoing it needs.

    Args:
        draft: where it is before.
        place: where it is after.
        kept: where what was there is meanwhile.
        inode: of the draft, by which it is known at its place,
        changed: and when it was written.
        emptied: whether there was an empty folder.
    """

    draft: str
    place: str
    kept: str
    inode: int
    changed: int
    emptied: bool


def _move(item: Draft, number: int) -> _Move:
    item.place.parent.mkdir(parents=True, exist_ok=True)
    draft, place = item.draft.absolute(), item.place.absolute()
    kept = item.folder.absolute() / f".old-{number}"
    emptied = place.is_dir() and not place.is_symlink() and not any(place.iterdir())
    own = draft.stat()
    return _Move(str(draft), str(place), str(kept), own.st_ino, own.st_mtime_ns, emptied)


def _write_plan(drafts: Sequence[Draft], moves: Sequence[_Move]) -> list[Path]:
    """Keep what is going to be done, unless it is done in one step; the first plan is the one."""
    if len(moves) == 1 and not (drafts[0].overwrite and drafts[0].draft.is_dir()):
        return []
    first, *others = dict.fromkeys(item.folder.absolute() for item in drafts)
    plan = first / _PLAN
    plan.write_text(json.dumps([vars(move) for move in moves]), encoding="utf-8")
    _flush(plan)
    for folder in others:
        (folder / _PLAN).symlink_to(plan)
        _flush(folder)
    _flush(first)
    return [plan]


def take_back_plan(folder: Path) -> None:
    """Undo what a run did that was killed before all was in its place; its drafts are in there."""
    plan = folder / _PLAN
    try:
        moves = [_Move(**move) for move in json.loads(plan.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # none, or not all of it was written
        return
    for move in reversed(moves):
        _take_back(move)
    plan.resolve().unlink()


def _take_back(move: _Move) -> None:
    """Undo what was done of one move, if anything."""
    draft, place, kept = Path(move.draft), Path(move.place), Path(move.kept)
    there = place.lstat() if os.path.lexists(place) else None
    if there is not None and (there.st_ino, there.st_mtime_ns) == (move.inode, move.changed):
        if draft.exists():
            place.unlink()
        else:
            place.rename(draft)
    if os.path.lexists(kept) and not os.path.lexists(place):
        kept.rename(place)
    if move.emptied and not os.path.lexists(place):
        place.mkdir()


def _put(item: Draft, move: _Move) -> None:
    """Put one in its place; what was there is kept until all are in theirs."""
    draft, place = item.draft, item.place
    if not item.overwrite and not draft.is_dir():
        _link(draft, place)
        return
    if os.path.lexists(place) and item.overwrite and not move.emptied:
        _keep(place, Path(move.kept))
    try:
        draft.replace(place)
    except OSError as error:
        if item.overwrite or not os.path.lexists(place):
            raise
        raise _taken(place) from error


def _link(draft: Path, place: Path) -> None:
    """Give a file its name only if nothing has it: of two that race, one fails."""
    try:
        os.link(draft, place)
        return
    except FileExistsError:
        taken = True
    except OSError:  # a file system without hard links
        taken = os.path.lexists(place)
    if taken:
        raise _taken(place)
    draft.rename(place)


def _taken(place: Path) -> InputError:
    return InputError(
        f"{place} exists already: something else wrote it meanwhile; choose another place, or "
        f"{spoken('ask to overwrite', 'pass --overwrite')}"
    )


def _keep(place: Path, kept: Path) -> None:
    """Keep what is at a place, without a moment in which a file is missing there."""
    if place.is_dir() and not place.is_symlink():
        place.rename(kept)
        return
    try:
        os.link(place, kept, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(place, kept, follow_symlinks=False)


def _remove_outdated(drafts: Sequence[Draft]) -> None:
    """Remove the data of what files held that were replaced, or that never appeared."""
    new = {item.place for item in drafts}
    for item in drafts:
        for path in outdated(item.place, new) if item.owner else ():
            path.unlink(missing_ok=True)


def _settle(item: Draft) -> None:
    """Permissions of new files, and everything on the disk."""
    draft = item.draft
    files = [draft] if draft.is_file() else [f for f in draft.rglob("*") if f.is_file()]
    mode = _mode_of_new_files(item.folder)
    for file in files:
        file.chmod(mode)
        _flush(file)


def _flush(path: Path) -> None:
    """Write what the system holds of a file or a folder to the disk."""
    with contextlib.suppress(OSError):  # systems that have no way to do so for folders
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _mode_of_new_files(folder: Path) -> int:
    """The permissions that the user's umask gives, which nothing tells without changing it."""
    probe = folder / ".new"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode
