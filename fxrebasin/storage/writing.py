"""Other weights in the place of those of a checkpoint, with all that is around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.gather import storage_identity
from fxrebasin.rounding import rounded
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.containers import (
    FILES,
    INDEX,
    Container,
    Content,
    Pickle,
    compact,
    container_for,
)
from fxrebasin.storage.copies import Copy, belongs_to
from fxrebasin.storage.files import refuse_existing, replacing_set
from fxrebasin.storage.finding import Found
from fxrebasin.storage.reading import Checkpoint, Kind, Move
from fxrebasin.storage.tree import KeyPath, at, is_tensor, like_mapping, replaced, without
from fxrebasin.wording import spoken

_NOT_WRITTEN = ("iostream error", "PytorchStreamWriter failed", "unexpected pos")
"""What torch says where a disk takes no more; it does not say why."""

Dtype = torch.dtype | None


@dataclass(frozen=True)
class Source:
    """What a checkpoint was read from."""

    content: Content
    found: Found


def write_tree(
    out: Path, like: Checkpoint, tree_and_container: tuple[Any, Container], *, overwrite: bool
) -> Path:
    """Write a tree at its place, all of it or nothing.

    Args:
        out: a file or a folder.
        like: what was read; an index is written under its name if `out` is a folder.
        tree_and_container: what is written, and into what.
        overwrite: replace files that exist.

    Returns:
        The path of the file, the index or the folder.

    Raises:
        CheckpointError: it cannot be written.
        InputError: it exists.
    """
    tree, container = tree_and_container
    if container.kind is Kind.INDEX and not out.name.endswith(INDEX):
        out = out / like.path.name
    if container.kind in (Kind.FILE, Kind.INDEX):
        refuse_existing([out], overwrite=overwrite)
    else:
        refuse_full_folder(out, overwrite=overwrite)
    try:
        with replacing_set(out, overwrite=overwrite) as draft:
            container.write(tree, draft)
    except (OSError, SafetensorError, RuntimeError) as error:
        full = "the disk may be full: " if any(w in str(error) for w in _NOT_WRITTEN) else ""
        raise CheckpointError(f"{out} cannot be written: {full}{first_lines(error)}") from error
    return out


def refuse_full_folder(out: Path, *, overwrite: bool) -> None:
    """Check that a folder can be written.

    Raises:
        InputError: it has something in it, or is a file.
    """
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(
            f"{out} exists already; choose another place, or "
            f"{spoken('ask to overwrite', 'pass --overwrite')}"
        )
    if not out.is_dir():
        refuse_existing([out], overwrite=False)


def place_for(out: Path, like: Checkpoint) -> Container | None:
    """The container that a path asks for; None for that of what was read.

    Args:
        out: a file of a kind that its suffix says; anything else is what was read.
        like: what was read.

    Raises:
        CheckpointError: it asks for what was not read.
    """
    if out.suffix == like.path.suffix and like.kind is not Kind.INDEX:
        return None  # also for folders, some of which are called .ckpt
    if like.kind is Kind.FILE:
        return container_for(out)
    if out.name.endswith(INDEX) and like.kind is Kind.INDEX:
        return None
    return container_for(out) if out.suffix in FILES or out.name.endswith(INDEX) else None


def rewritten(
    source: Source,
    state: Mapping[str, torch.Tensor],
    dtype: Dtype,
    others: Move | None,
    asked: Container | None,
) -> tuple[Any, Container]:
    """The tree of a checkpoint with other weights in it, and the container that it goes to.

    Args:
        source: what was read.
        state: the weights by name of the model.
        dtype: of all floating tensors; as they were when left out.
        others: makes other copies fit; they are left out when this is.
        asked: the container, if another one than it came in.

    Raises:
        InputError: `state` lacks tensors that are in the checkpoint.
    """
    found = source.found
    shapes = {name: tensor.shape for name, tensor in found.state.items()}
    edits = _Edits(source.content.tree, dtype, shapes)
    edits.take(found.taken, _needed(state, found.taken))
    for copy in found.others:
        edits.others(copy, others)
    for place, names in found.nameless.items():
        edits.nameless(place, names, others)
    tree = without(edits.tree(), found.optimisers)
    if asked is None:
        return tree, source.content.container
    tree, place, kind = _single_file(tree, found.taken.place, source.content.container)
    if not asked.flat and not kind.flat:
        return tree, asked
    flat = {name: tensor for name, tensor in at(tree, place).items() if is_tensor(tensor)}
    return compact(flat | _ties(found, flat) if isinstance(asked, Pickle) else flat), asked


def _single_file(tree: Any, place: KeyPath, container: Container) -> tuple[Any, KeyPath, Container]:
    """What is in the file that has the weights, where the tree is that of a folder."""
    inner = getattr(container, "containers", None)
    if container.kind is Kind.WEIGHTS_FOLDER and inner is not None:
        return tree[place[0]], place[1:], inner[place[0]]
    return tree, place, container


def _ties(found: Found, flat: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tied tensors under the names that safetensors left out, which load_state_dict asks for."""
    naming = found.taken.naming
    if not naming.plain:
        return {}
    by_storage = {storage_identity(found.state[name]): s for name, s in naming.names.items()}
    missing = [n for n in found.state if n not in naming.names and n not in found.filled]
    return {
        naming.prefix + name.removeprefix(naming.own_prefix): flat[source]
        for name in missing
        for source in [by_storage.get(storage_identity(found.state[name]))]
        if source is not None
    }


def _needed(state: Mapping[str, torch.Tensor], taken: Copy) -> dict[str, torch.Tensor]:
    """The weights by their names in the file."""
    missing = [name for name in taken.naming.names if name not in state]
    if missing:
        raise InputError(
            f"the weights to write lack {', '.join(missing[:5])}, {len(missing)} in all, which the "
            "checkpoint that they replace has."
        )
    return {there: state[name] for name, there in taken.naming.names.items()}


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


@dataclass
class _Edits:
    """Changes of the dictionaries of a tree, by their place."""

    root: Any
    dtype: Dtype
    shapes: Mapping[str, torch.Size]
    made: dict[KeyPath, dict[str, Any]] = field(default_factory=dict)
    gone: set[KeyPath] = field(default_factory=set)

    def take(self, copy: Copy, new: Mapping[str, torch.Tensor]) -> None:
        """Put new tensors in the place of those of a copy."""
        self._at(copy.place).update(new)

    def others(self, copy: Copy, move: Move | None) -> None:
        """Bring another copy into the new order, or leave it out."""
        inside = self._at(copy.place)
        names = copy.naming.names.items()
        if move is not None and all(self.shapes.get(n) == copy.tensors[t].shape for n, t in names):
            inside.update({there: move(name, copy.tensors[there]) for name, there in names})
            return
        for name in copy.tensors:
            if belongs_to(copy, copy.place, name):
                del inside[name]
        if not any(map(is_tensor, inside.values())):
            self.gone.add(copy.place)

    def nameless(self, place: KeyPath, names: Sequence[str], move: Move | None) -> None:
        """Bring a list of weights into the new order, or leave it out."""
        if move is None:
            self.gone.add(place)
            return
        old = at(self.root, place)
        moved = [move(name, tensor) for name, tensor in zip(names, old, strict=True)]
        self.root = replaced(self.root, place, type(old)(moved))

    def tree(self) -> Any:
        """The tree with all changes."""
        tree = self.root
        for place, new in self.made.items():
            old = at(self.root, place)
            tree = replaced(tree, place, like_mapping(old, self._as_stored(old, new)))
        return without(tree, self.gone)

    def _at(self, place: KeyPath) -> dict[str, Any]:
        return self.made.setdefault(place, dict(at(self.root, place)))

    def _as_stored(self, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[Any, Any]:
        """New values in the dtypes and classes of the old ones, tied where these are."""
        firsts: dict[tuple[object, ...], torch.Tensor] = {}
        result = {}
        for name, value in new.items():
            if is_tensor(old[name]) and old[name].layout is torch.strided:
                made = self._cast(str(name), value, old[name].dtype)
                first = firsts.setdefault(storage_identity(old[name]), made)
                value = first if first is not made and _equal(first, made) else made
                if isinstance(old[name], nn.Parameter):
                    value = nn.Parameter(value, old[name].requires_grad)
            result[name] = value
        return result

    def _cast(self, name: str, tensor: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
        asked = self.dtype if stored.is_floating_point else None
        return rounded(name, tensor.detach(), asked or stored)
