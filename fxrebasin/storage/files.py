"""Files that appear at once and whole, and never in place of another one unless asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fxrebasin.errors import InputError


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
            "choose another place, or ask to overwrite (folders are never replaced)"
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
        for draft in (Path(folder) / name for name in (*beside, path.name)):
            if draft.exists():
                draft.replace(path.with_name(draft.name))
