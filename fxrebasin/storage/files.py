"""Files that appear at once and whole, and never in place of another one unless asked."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxrebasin.errors import InputError
from fxrebasin.storage.content_names import DATA, outdated
from fxrebasin.wording import spoken

# Not on Windows, where what a killed run leaves is not removed.
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_DRAFTS = ".fxrebasin-"
_NEW_DRAFTS = ".new-fxrebasin-"
_LOCK = ".lock"
_PLAN = ".plan"


def refuse_existing(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Check, before any work is done, that files can be written.

    What a killed run left where they are going to be is removed first: it may be in the way.

    Args:
        paths: files that are going to be written.
        overwrite: allow files that exist to be replaced (never folders).

    Raises:
        InputError: a path is taken, if only by a link that leads nowhere, or by what is no file,
            such as a device; or what should be its folder is a file.

    Example:
        >>> refuse_existing([Path("no-such-folder") / "new.png"], overwrite=False)
    """
    for folder in {path.parent for path in paths}:
        _remove_leftovers(folder)
    taken = [str(p) for p in paths if p.is_dir() or (os.path.lexists(p) and not overwrite)]
    if taken:
        raise InputError(
            f"{', '.join(taken)} exist{'s' if len(taken) == 1 else ''} already; "
            f"choose another place, or {spoken('ask to overwrite', 'pass --overwrite')} "
            "(folders are never replaced)"
        )
    for path in paths:
        _refuse_devices(path)
        for folder in path.parents:
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{path} cannot be written: {folder} is a file, not a folder")


def _refuse_devices(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(
            f"{path} is a device, a pipe or the like, which nothing takes the place of; choose "
            "another place"
        )


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
    inside = _inside_draft(path)
    try:
        if inside is not None:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.write_bytes(payload)
            return
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
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Where to write a file that appears at its place only when all of it was written.

    Files get the permissions that new files of the user have (umask), whoever wrote them, and are
    on the disk before they have their names. What was written beside the file appears before it.
    Data that belong to it have names of their content (`fxrebasin.storage.content_names`): such a
    file may be there already, as the same; those of what the file held before are removed.

    Args:
        path: the place; its folder is made if it is missing.
        overwrite: replace files that exist by then.

    Raises:
        InputError: one exists that is not to be replaced, or cannot be written.

    Example:
        >>> with replacing(Path("greeting.txt")) as draft:
        ...     _ = draft.write_bytes(b"hello"), draft.with_name("answer.txt").write_bytes(b"hi")
        >>> Path("greeting.txt").read_bytes(), Path("answer.txt").read_bytes()
        (b'hello', b'hi')
    """
    with _drafting(path.parent) as (folder, drafts):
        yield folder / path.name
        beside = [f for f in sorted(folder.iterdir()) if f.name not in (_LOCK, path.name)]
        for draft in [*beside, *[folder / path.name]]:
            if draft.exists():
                replaces = overwrite or DATA.search(draft.name) is not None
                place = path.with_name(draft.name)
                drafts.append(_Draft(draft, place, folder, replaces, owner=place == path))


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
    with _drafting(path.parent) as (folder, drafts):
        yield folder / path.name
        if (folder / path.name).is_dir() and not os.path.lexists(path):
            drafts.append(_Draft(folder / path.name, path, folder, overwrite=False))
            return
        files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != _LOCK]
        places = [path.parent / file.relative_to(folder) for file in files]
        refuse_existing(places, overwrite=overwrite)
        # The file that says what belongs together comes last.
        pairs = sorted(zip(files, places, strict=True), key=lambda pair: _leads(pair[1]))
        drafts += [_Draft(file, place, folder, overwrite) for file, place in pairs]


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
    with _drafting(path.parent) as (folder, drafts):
        (folder / path.name).mkdir()
        yield folder / path.name
        drafts.append(_Draft(folder / path.name, path, folder, overwrite=True))


def put(written: Path, place: Path, *, overwrite: bool) -> None:
    """Move what was written elsewhere on the same disk to its place, with a set if there is one.

    Args:
        written: a file or a folder.
        place: where it belongs; an empty folder may be there.
        overwrite: replace what exists.

    Raises:
        InputError: something exists that is not to be replaced, or it cannot be moved.

    Example:
        >>> Path("finished").mkdir()
        >>> _ = Path("finished", "text").write_text("hello")
        >>> put(Path("finished", "text"), Path("moved.txt"), overwrite=False)
        >>> Path("moved.txt").read_text()
        'hello'
    """
    with _drafting(place.parent) as (folder, drafts):
        drafts.append(_Draft(written, place, folder, overwrite))


@dataclass(frozen=True)
class _Draft:
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


@dataclass
class _Batch:
    """Drafts that appear together; their folders are kept until then."""

    folders: ExitStack
    drafts: list[_Draft] = field(default_factory=list)


_batch: ContextVar[_Batch | None] = ContextVar("fxrebasin.batch", default=None)


def _inside_draft(path: Path) -> Path | None:
    """Where to write a file that belongs into a folder of this set."""
    batch = _batch.get()
    for item in () if batch is None else reversed(batch.drafts):
        if item.place in path.parents and item.draft.is_dir():
            return item.draft / path.relative_to(item.place)
    return None


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
    """A folder that is locked while its process lives; those of processes that died are removed.

    It is beside the places of what is written, or as near to them as there are folders yet.
    """
    parent = next(folder for folder in (parent, *parent.absolute().parents) if folder.is_dir())
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
            _take_back_plan(folder / _PLAN)
            shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(drafts: Sequence[_Draft]) -> None:
    """Let all appear, or none: what was done is undone if one cannot.

    A run that is killed meanwhile leaves a plan, by which the next one undoes what it did.
    """
    if not drafts:
        return
    place: Path | None = None
    try:
        for item in drafts:
            place = item.place
            _refuse_devices(place)
            _settle(item)
        with _alone({item.place.parent for item in drafts}), ExitStack() as undo:
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


def _move(item: _Draft, number: int) -> _Move:
    item.place.parent.mkdir(parents=True, exist_ok=True)
    draft, place = item.draft.absolute(), item.place.absolute()
    kept = item.folder.absolute() / f".old-{number}"
    emptied = place.is_dir() and not place.is_symlink() and not any(place.iterdir())
    own = draft.stat()
    return _Move(str(draft), str(place), str(kept), own.st_ino, own.st_mtime_ns, emptied)


def _write_plan(drafts: Sequence[_Draft], moves: Sequence[_Move]) -> list[Path]:
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


def _take_back_plan(plan: Path) -> None:
    """Undo what a run did that was killed before all was in its place."""
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


def _put(item: _Draft, move: _Move) -> None:
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


@contextmanager
def _alone(folders: Collection[Path]) -> Iterator[None]:
    """Keep other runs from putting files into these folders: sets of two runs do not mix."""
    with ExitStack() as stack:
        for folder in sorted(folders):
            folder.mkdir(parents=True, exist_ok=True)
            if _fcntl is not None:
                number = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, number)
                with contextlib.suppress(OSError):  # a file system without locks
                    _fcntl.flock(number, _fcntl.LOCK_EX)
        yield


def _remove_outdated(drafts: Sequence[_Draft]) -> None:
    """Remove the data of what files held that were replaced, or that never appeared."""
    new = {item.place for item in drafts}
    for item in drafts:
        for path in outdated(item.place, new) if item.owner else ():
            path.unlink(missing_ok=True)


def _settle(item: _Draft) -> None:
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


def _leads(path: Path) -> bool:
    return path.name == ".metadata" or path.name.endswith(".index.json")


def _mode_of_new_files(folder: Path) -> int:
    """The permissions that the user's umask gives, which nothing tells without changing it."""
    probe = folder / ".new"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode
