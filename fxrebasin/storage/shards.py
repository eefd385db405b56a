"""Checkpoints in several files, with an index that says which tensor is in which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxrebasin.errors import CheckpointError
from fxrebasin.storage.containers import INDEX, Container, Content, check_is_file, read_file
from fxrebasin.storage.reading import Kind


@dataclass(frozen=True)
class Shards:
    """An index, with its shards beside it.

    Args:
        name: of the index.
        document: what is in it.
        files: name of the shard by the name of the tensor.
        containers: of each shard.
    """

    name: str
    document: Mapping[str, Any]
    files: Mapping[str, str]
    containers: Mapping[str, Container]
    kind = Kind.INDEX
    flat = True

    def write(self, tree: Any, draft: Path) -> None:
        """Write the shards that the tensors were in, and an index of them."""
        used = [s for s in self.containers if any(self.files[name] == s for name in tree)]
        names = dict(zip(used, self._shard_names(draft.name, used), strict=True))
        for shard, name in names.items():
            tensors = {n: tensor for n, tensor in tree.items() if self.files[n] == shard}
            self.containers[shard].write(tensors, draft.with_name(name))
        index = {**self.document, "weight_map": {n: names[self.files[n]] for n in tree}}
        metadata = self.document.get("metadata")
        if isinstance(metadata, Mapping) and "total_size" in metadata:
            size = sum(tensor.nbytes for tensor in _distinct(tree))
            index["metadata"] = {**metadata, "total_size": size}
        draft.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _shard_names(self, index: str, used: list[str]) -> list[str]:
        """The names that shards had, or after the name of the index if that is another one."""
        if index == self.name:
            return used
        stem, count = index.removesuffix(INDEX), len(used)
        suffix = Path(used[0]).suffix if used else ""
        stem = stem.removesuffix(suffix)
        return [f"{stem}-{i:05d}-of-{count:05d}{suffix}" for i in range(1, count + 1)]


def read_shards(index: Path) -> Content:
    """All tensors of a checkpoint in shards: those that its index names, from where it says.

    Raises:
        CheckpointError: the index or a shard is missing or damaged, or they do not fit.
    """
    document, files = _parsed(index)
    shards = sorted(set(files.values()))
    contents = {shard: _read_shard(index, shard) for shard in shards}
    missing = [name for name, shard in files.items() if name not in contents[shard].tree]
    if missing:
        raise CheckpointError(
            f"{index} promises {', '.join(missing[:5])}, {len(missing)} in all, which its shards "
            "do not hold. Download the shards again."
        )
    tree = {name: contents[shard].tree[name] for name, shard in files.items()}
    containers = {shard: content.container for shard, content in contents.items()}
    return Content(tree, Shards(index.name, document, files, containers))


def named_shards(index: Path) -> set[Any]:
    """What an index names, whether or not it is there; nothing if it is no index.

    Args:
        index: of a checkpoint in shards.
    """
    try:
        return set(_parsed(index)[1].values())
    except CheckpointError:
        return set()


def _parsed(index: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The index, and the shard of each tensor."""
    check_is_file(index)
    try:
        document = json.loads(index.read_text(encoding="utf-8"))
        files = dict(document["weight_map"])
        sorted(set(files.values()))  # these are names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is not an index of a checkpoint in shards: expected JSON with a 'weight_map'."
        ) from error
    return document, files


def _read_shard(index: Path, shard: Any) -> Content:
    if not isinstance(shard, str) or Path(shard).name != shard:
        raise CheckpointError(f"{index} names the shard {shard!r}; expected a file beside it.")
    content = read_file(index.parent / shard)
    if not isinstance(content.tree, Mapping):
        raise CheckpointError(f"{index.parent / shard} holds no tensors by name.")
    return content


def _distinct(tree: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Each tensor once, also where several names share it."""
    return list({id(tensor): tensor for tensor in tree.values()}.values())
