"""Files that appear at once and whole, and never in place of another one unless asked."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fxrebasin.errors import InputError
from fxrebasin.wording import spoken


def refuse_existing(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Check, before any work is done, that files can be written.

    Args:
        paths: files that are going to be written.
        overwrite: allow files that exist to be replaced (never folders).

    Raises:
        InputError: a path is taken, or what should be its folder is a file.

    Example:
        >>> refuse_existing([Path("no-such-folder") / "new.png"], overwrite=False)
    """
    taken = [str(path) for path in paths if path.is_dir() or (path.exists() and not overwrite)]
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
        with replacing(path) as draft:
            draft.write_bytes(payload)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error


@contextmanager
def replacing(path: Path, *beside: str) -> Iterator[Path]:
    """Where to write a file that appears at its place only when all of it was written.

    Files get the permissions that new files of the user have (umask), whoever wrote them.

    Args:
        path: the place; its folder has to exist.
        beside: names of files that may be written beside it, and that appear before it.

    Example:
        >>> with replacing(Path("greeting.txt"), "answer.txt") as draft:
        ...     _ = draft.write_bytes(b"hello"), draft.with_name("answer.txt").write_bytes(b"hi")
        >>> Path("greeting.txt").read_bytes(), Path("answer.txt").read_bytes()
        (b'hello', b'hi')
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        yield Path(folder) / path.name
        mode = _mode_of_new_files(Path(folder))
        for draft in (Path(folder) / name for name in (*beside, path.name)):
            if draft.exists():
                draft.chmod(mode)
                draft.replace(path.with_name(draft.name))


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
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as name:
        folder = Path(name)
        yield folder / path.name
        mode = _mode_of_new_files(folder)
        drafts = [found for found in sorted(folder.rglob("*")) if found.is_file()]
        for draft in drafts:
            draft.chmod(mode)
        if (folder / path.name).is_dir() and not path.exists():
            (folder / path.name).replace(path)
            return
        places = [path.parent / draft.relative_to(folder) for draft in drafts]
        refuse_existing(places, overwrite=overwrite)
        # The file that says what belongs together comes last.
        for draft, place in sorted(zip(drafts, places, strict=True), key=lambda p: _leads(p[1])):
            place.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(place)


def _leads(path: Path) -> bool:
    return path.name == ".metadata" or path.name.endswith(".index.json")


def _mode_of_new_files(folder: Path) -> int:
    """The permissions that the user's umask gives, which nothing tells without changing it."""
    probe = folder / ".new"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode
