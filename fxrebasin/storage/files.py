"""Files that appear at once and whole, and never in place of another one unless asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from fxrebasin.errors import InputError
from fxrebasin.storage.content_names import DATA
from fxrebasin.storage.drafts import LOCK, drafts_folder, remove_leftovers
from fxrebasin.storage.placing import Draft, put_in_place, refuse_devices
from fxrebasin.wording import spoken


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
        remove_leftovers(folder)
    taken = [str(p) for p in paths if p.is_dir() or (os.path.lexists(p) and not overwrite)]
    if taken:
        raise InputError(
            f"{', '.join(taken)} exist{'s' if len(taken) == 1 else ''} already; "
            f"choose another place, or {spoken('ask to overwrite', 'pass --overwrite')} "
            "(folders are never replaced)"
        )
    for path in paths:
        refuse_devices(path)
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
        put_in_place(batch.drafts)


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
        beside = [f for f in sorted(folder.iterdir()) if f.name not in (LOCK, path.name)]
        for draft in [*beside, *[folder / path.name]]:
            if draft.exists():
                replaces = overwrite or DATA.search(draft.name) is not None
                place = path.with_name(draft.name)
                drafts.append(Draft(draft, place, folder, replaces, owner=place == path))


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
            drafts.append(Draft(folder / path.name, path, folder, overwrite=False))
            return
        files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != LOCK]
        places = [path.parent / file.relative_to(folder) for file in files]
        refuse_existing(places, overwrite=overwrite)
        # The file that says what belongs together comes last.
        pairs = sorted(zip(files, places, strict=True), key=lambda pair: _leads(pair[1]))
        drafts += [Draft(file, place, folder, overwrite) for file, place in pairs]


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
        drafts.append(Draft(folder / path.name, path, folder, overwrite=True))


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
        drafts.append(Draft(written, place, folder, overwrite))


@dataclass
class _Batch:
    """Drafts that appear together; their folders are kept until then."""

    folders: ExitStack
    drafts: list[Draft] = field(default_factory=list)


_batch: ContextVar[_Batch | None] = ContextVar("fxrebasin.batch", default=None)


def _inside_draft(path: Path) -> Path | None:
    """Where to write a file that belongs into a folder of this set."""
    batch = _batch.get()
    for item in () if batch is None else reversed(batch.drafts):
        if item.place in path.parents and item.draft.is_dir():
            return item.draft / path.relative_to(item.place)
    return None


@contextmanager
def _drafting(parent: Path) -> Iterator[tuple[Path, list[Draft]]]:
    """A folder for drafts, and a list of them, which are put in place at the end."""
    batch = _batch.get()
    if batch is not None:
        drafts: list[Draft] = []
        yield batch.folders.enter_context(drafts_folder(parent)), drafts
        batch.drafts += drafts
        return
    with drafts_folder(parent) as folder:
        drafts = []
        yield folder, drafts
        put_in_place(drafts)


def _leads(path: Path) -> bool:
    return path.name == ".metadata" or path.name.endswith(".index.json")
