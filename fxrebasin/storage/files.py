"""Files that appear at once and whole, and never in place of another one unless asked."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxrebasin.errors import InputError
from fxrebasin.wording import spoken

# Not on Windows, where what a killed run leaves is not removed.
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_DRAFTS = ".fxrebasin-"
_NEW_DRAFTS = ".new-fxrebasin-"
_LOCK = ".lock"


def refuse_existing(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Check, before any work is done, that files can be written.

    Args:
        paths: files that are going to be written.
        overwrite: allow files that exist to be replaced (never folders).

    Raises:
        InputError: a path is taken, if only by a link that leads nowhere, or what should be its
            folder is a file.

    Example:
        >>> refuse_existing([Path("no-such-folder") / "new.png"], overwrite=False)
    """
    taken = [str(p) for p in paths if p.is_dir() or (os.path.lexists(p) and not overwrite)]
    if taken:
        raise InputError(
            f"{', '.join(taken)} exist{'s' if len(taken) == 1 else ''} already; "
            f"choose another place, or {spoken('ask to overwrite', 'pass --overwrite')} "
            "(folders are never replaced)"
        )
    for path in paths:
        for folder in path.parents:
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{path} cannot be written: {folder} is a file, not a folder")


def publish(path: Path, payload: bytes, *, overwrite: bool = False) -> None:
    """Write a file beside its place, then move it there; its folder is made if it is missing.

    Args:
        path: of the file.
        payload: its content.
        overwrite: replace a file that exists.

    Raises:
        InputError: the file exists, or cannot be written.

    Example:
        >>> publish(Path("greeting.txt"), b"hello")
        >>> Path("greeting.txt").read_bytes()
        b'hello'
    """
    refuse_existing([path], overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, overwrite=overwrite) as draft:
            draft.write_bytes(payload)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error


@contextmanager
def together() -> Iterator[None]:
    """All that is written inside appears when the block ends: everything, or nothing.

    Raises:
        InputError: something is there that was not to be replaced; nothing is changed then.

    Example:
        >>> with together():
        ...     publish(Path("one.txt"), b"1")
        ...     publish(Path("two.txt"), b"2")
        ...     Path("one.txt").exists()
        False
        >>> Path("one.txt").exists(), Path("two.txt").exists()
        (True, True)
    """
    with ExitStack() as folders:
        batch = _Batch(folders)
        token = _batch.set(batch)
        try:
            yield
        finally:
            _batch.reset(token)
        _put_in_place(batch.drafts)


@contextmanager
def replacing(path: Path, *beside: str, overwrite: bool = True) -> Iterator[Path]:
    """Where to write a file that appears at its place only when all of it was written.

    Files get the permissions that new files of the user have (umask), whoever wrote them, and are
    on the disk before they have their names.

    Args:
        path: the place; its folder has to exist.
        beside: names of files that may be written beside it, and that appear before it.
        overwrite: replace files that exist by then.

    Raises:
        InputError: one exists that is not to be replaced.

    Example:
        >>> with replacing(Path("greeting.txt"), "answer.txt") as draft:
        ...     _ = draft.write_bytes(b"hello"), draft.with_name("answer.txt").write_bytes(b"hi")
        >>> Path("greeting.txt").read_bytes(), Path("answer.txt").read_bytes()
        (b'hello', b'hi')
    """
    with _drafting(path.parent) as (folder, drafts):
        yield folder / path.name
        for draft in (folder / name for name in (*beside, path.name)):
            if draft.exists():
                drafts.append(_Draft(draft, path.with_name(draft.name), overwrite))


@contextmanager
def replacing_set(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Where to write a file with others beside it, or a folder, which appear together.

    Args:
        path: of the file, which appears last, or of the folder.
        overwrite: replace files that exist; those of a folder that are not written again stay.

    Raises:
        InputError: one of them exists, or there is a file where a folder should be.

    Example:
        >>> with replacing_set(Path("model"), overwrite=False) as draft:
        ...     draft.mkdir()
        ...     _ = (draft / "weights.txt").write_text("1 2 3")
        >>> (Path("model") / "weights.txt").read_text()
        '1 2 3'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _drafting(path.parent) as (folder, drafts):
        yield folder / path.name
        if (folder / path.name).is_dir() and not os.path.lexists(path):
            drafts.append(_Draft(folder / path.name, path, overwrite=False))
            return
        files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != _LOCK]
        places = [path.parent / file.relative_to(folder) for file in files]
        refuse_existing(places, overwrite=overwrite)
        # The file that says what belongs together comes last.
        pairs = sorted(zip(files, places, strict=True), key=lambda pair: _leads(pair[1]))
        drafts += [_Draft(file, place, overwrite) for file, place in pairs]


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of another one, if there is one.

    Args:
        path: of the folder.

    Example:
        >>> with replacing_folder(Path("model")) as draft:
        ...     _ = (draft / "config.json").write_text("{}")
        >>> (Path("model") / "config.json").read_text()
        '{}'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _drafting(path.parent) as (folder, drafts):
        (folder / path.name).mkdir()
        yield folder / path.name
        drafts.append(_Draft(folder / path.name, path, overwrite=True))


@dataclass(frozen=True)
class _Draft:
    """A file or folder that was written, and where it belongs."""

    draft: Path
    place: Path
    overwrite: bool


@dataclass
class _Batch:
    """Drafts that appear together; their folders are kept until then."""

    folders: ExitStack
    drafts: list[_Draft] = field(default_factory=list)


_batch: ContextVar[_Batch | None] = ContextVar("fxrebasin.batch", default=None)


@contextmanager
def _drafting(parent: Path) -> Iterator[tuple[Path, list[_Draft]]]:
    """A folder for drafts, and a list of them, which are put in place at the end."""
    batch = _batch.get()
    if batch is not None:
        drafts: list[_Draft] = []
        yield batch.folders.enter_context(_drafts_folder(parent)), drafts
        batch.drafts += drafts
        return
    with _drafts_folder(parent) as folder:
        drafts = []
        yield folder, drafts
        _put_in_place(drafts)


@contextmanager
def _drafts_folder(parent: Path) -> Iterator[Path]:
    """A folder that is locked while its process lives; those of processes that died are removed."""
    _remove_leftovers(parent)
    made = Path(tempfile.mkdtemp(dir=parent, prefix=_NEW_DRAFTS))
    with ExitStack() as stack:
        if _fcntl is not None:
            lock = stack.enter_context((made / _LOCK).open("w"))
            _fcntl.flock(lock, _fcntl.LOCK_EX)
        # It has the name of one that may be removed only when it is locked.
        folder = made.rename(parent / made.name.replace(_NEW_DRAFTS, _DRAFTS, 1))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Remove what runs left that were killed; what is locked belongs to one that still writes."""
    if _fcntl is None:
        return
    for folder in parent.glob(f"{_DRAFTS}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("r+") as lock:
            _fcntl.flock(lock, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(drafts: Sequence[_Draft]) -> None:
    """Let all appear, or none: what was done is undone if one cannot."""
    for item in drafts:
        _settle(item.draft)
    with ExitStack() as undo:
        for number, item in enumerate(drafts):
            item.place.parent.mkdir(parents=True, exist_ok=True)
            _put(item, item.draft.with_name(f".old-{number}"), undo)
        undo.pop_all()
    for folder in {item.place.parent for item in drafts}:
        _flush(folder)


def _put(item: _Draft, kept: Path, undo: ExitStack) -> None:
    """Put one in its place; what was there is kept until all are in theirs."""
    draft, place = item.draft, item.place
    if not item.overwrite and not draft.is_dir():
        _link(draft, place)
        undo.callback(place.unlink)
        return
    if os.path.lexists(place) and item.overwrite:
        _keep(place, kept)
        undo.callback(kept.replace, place)
        undo.callback(_remove, place)
    else:
        undo.callback(_remove, place)
    draft.replace(place)


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
        raise InputError(
            f"{place} exists already: something else wrote it meanwhile; choose another place, or "
            f"{spoken('ask to overwrite', 'pass --overwrite')}"
        )
    draft.rename(place)


def _keep(place: Path, kept: Path) -> None:
    """Keep what is at a place, without a moment in which a file is missing there."""
    if place.is_dir() and not place.is_symlink():
        place.rename(kept)
        return
    try:
        os.link(place, kept, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(place, kept, follow_symlinks=False)


def _remove(place: Path) -> None:
    """Remove a file or a folder of ours, if it is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _settle(draft: Path) -> None:
    """Permissions of new files, and everything on the disk."""
    files = [draft] if draft.is_file() else [f for f in draft.rglob("*") if f.is_file()]
    mode = _mode_of_new_files(draft.parent)
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


def _leads(path: Path) -> bool:
    return path.name == ".metadata" or path.name.endswith(".index.json")


def _mode_of_new_files(folder: Path) -> int:
    """The permissions that the user's umask gives, which nothing tells without changing it."""
    probe = folder / ".new"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode
