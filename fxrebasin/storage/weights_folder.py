"""Folders with files of weights beside other files, as accelerate writes them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxrebasin.errors import CheckpointError
from fxrebasin.storage.containers import FILES, INDEX, Container, Content, read_file
from fxrebasin.storage.distributed import is_distributed, read_distributed
from fxrebasin.storage.reading import Kind
from fxrebasin.storage.shards import Shards, named_shards, read_shards
from fxrebasin.storage.tree import names_optimiser


@dataclass(frozen=True)
class WeightsFolder:
    """A folder; its tree has what is in each file of weights by the name of the file.

    Args:
        path: where it is, for what is copied from it.
        containers: by the name of a file or folder in it.
    """

    path: Path
    containers: Mapping[str, Container]
    kind = Kind.WEIGHTS_FOLDER
    flat = False

    def write(self, tree: Any, draft: Path) -> None:
        """Write the files of weights that are in the tree, and copy other files beside them."""
        draft.mkdir()
        own = set(self.containers)
        for container in self.containers.values():
            own |= set(container.containers) if isinstance(container, Shards) else set()
        for found in sorted(self.path.iterdir()):
            if found.is_file() and found.name not in own and not names_optimiser(found.name):
                shutil.copyfile(found, draft / found.name)
        for name, inner in tree.items():
            self.containers[name].write(inner, draft / name)


def read_weights_folder(path: Path) -> Content:
    """The content of all files of weights in a folder; what cannot be read is left for copying.

    Raises:
        CheckpointError: there is none, or none that can be read.
    """
    faults: list[CheckpointError] = []
    contents: dict[str, Content] = {}
    found = sorted(path.iterdir())
    indices = {p.name: p for p in found if p.name.endswith(INDEX) and p.is_file()}
    for name, index in indices.items():
        _attempt(contents, faults, name, index)
    shards = set().union(*map(named_shards, indices.values()))
    for entry in found:
        weights = entry.is_file() and entry.suffix in FILES and entry.name not in shards
        if weights or is_distributed(entry):
            _attempt(contents, faults, entry.name, entry)
    if not contents:
        if faults:
            raise faults[0]
        names = ", ".join(entry.name for entry in found[:5]) or "nothing"
        raise CheckpointError(
            f"{path} is a folder without a file of weights ({', '.join(FILES)} or *{INDEX}); it "
            f"holds {names}."
        )
    tree = {name: content.tree for name, content in contents.items()}
    containers = {name: content.container for name, content in contents.items()}
    return Content(tree, WeightsFolder(path, containers))


def _attempt(
    contents: dict[str, Content], faults: list[CheckpointError], name: str, path: Path
) -> None:
    try:
        if path.is_dir():
            contents[name] = read_distributed(path)
        else:
            contents[name] = read_shards(path) if name.endswith(INDEX) else read_file(path)
    except CheckpointError as error:
        faults.append(error)
