"""Files appear whole, and replace nothing unless asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxrebasin.errors import InputError
from fxrebasin.storage.files import publish, refuse_existing


def test_a_file_is_published_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b.bin"
    publish(path, b"one")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.bin"]


def test_a_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "b.bin"
    publish(path, b"one")
    with pytest.raises(InputError, match=r"b\.bin exists already"):
        publish(path, b"two")
    assert path.read_bytes() == b"one"
    publish(path, b"two", overwrite=True)
    assert path.read_bytes() == b"two"


def test_all_files_in_the_way_are_named(tmp_path):
    taken = [tmp_path / "a", tmp_path / "b"]
    for path in taken:
        path.touch()
    with pytest.raises(InputError, match=r"/a, .*/b exist already"):
        refuse_existing([*taken, tmp_path / "c"], overwrite=False)


def test_a_folder_is_never_replaced(tmp_path):
    with pytest.raises(InputError, match="folders are never replaced"):
        refuse_existing([tmp_path], overwrite=True)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match="cannot be written: disk full"):
        publish(tmp_path / "b.bin", b"one")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="this system has no pipes with names")
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_takes_the_place_of_what_is_no_file(tmp_path: Path, overwrite: bool) -> None:
    place = tmp_path / "pipe.safetensors"
    os.mkfifo(place)
    link = tmp_path / "link.safetensors"
    link.symlink_to(place)
    for path in (place, link):
        words = "exists already" if not overwrite else "is a device, a pipe or the like, which"
        with pytest.raises(InputError, match=words):
            publish(path, b"new", overwrite=overwrite)
    assert place.is_fifo()
    assert link.is_symlink()
