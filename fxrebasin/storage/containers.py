"""Kinds of files that hold weights: safetensors, and what torch.save writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fxrebasin.errors import CheckpointError
from fxrebasin.gather import storage_identity
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.pickles import is_zip, load_pickle
from fxrebasin.storage.reading import Kind
from fxrebasin.storage.safetensors_header import settle
from fxrebasin.wording import escaped

SAFETENSORS = (".safetensors",)
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # timm writes .pth.tar, which is no archive
INDEX = ".index.json"
_UNKNOWN = (torch.complex128, torch.complex32)  # numbers that safetensors cannot hold
FILES = (*SAFETENSORS, *PICKLES)
KINDS = ", ".join((*FILES, f"*{INDEX}"))


class Container(Protocol):
    """What holds a tree of dictionaries with tensors, and how it is written."""

    @property
    def kind(self) -> Kind:
        """Of file or folder."""

    @property
    def flat(self) -> bool:
        """Whether it holds tensors by name and nothing else."""

    def write(self, tree: Any, draft: Path) -> None:
        """Write a file, with others beside it that belong to it, or a folder."""


@dataclass(frozen=True)
class Content:
    """What was read: a tree of dictionaries with tensors and other objects, and what held it."""

    tree: Any
    container: Container


@dataclass(frozen=True)
class Pickle:
    """A file of `torch.save`."""

    old_format: bool = False
    kind = Kind.FILE
    flat = False

    def write(self, tree: Any, draft: Path) -> None:
        """Write any tree."""
        torch.save(tree, draft, _use_new_zipfile_serialization=not self.old_format)


@dataclass(frozen=True)
class Safetensors:
    """A safetensors file, with its metadata."""

    metadata: Mapping[str, str] | None = None
    kind = Kind.FILE
    flat = True

    def write(self, tree: Any, draft: Path) -> None:
        """Write tensors by name."""
        unknown = [
            name for name, t in tree.items() if t.dtype in (torch.complex128, torch.complex32)
        ]
        if unknown:
            raise CheckpointError(
                f"safetensors has no numbers of the kind {tree[unknown[0]].dtype}, which "
                f"{escaped(unknown[0])} has; write a .pt file"
            )
        save_file(separate(tree), draft, metadata=dict(self.metadata) if self.metadata else None)
        settle(draft)


def container_for(path: Path) -> Container:
    """A new file of the kind that its suffix says.

    Raises:
        CheckpointError: it is of no known kind.
    """
    if path.suffix in SAFETENSORS:
        return Safetensors({"format": "pt"})
    if path.suffix in PICKLES:
        return Pickle()
    raise CheckpointError(
        f"{path} does not have the name of a weights file; expected one of {', '.join(FILES)}."
    )


def read_file(path: Path) -> Content:
    """The content of a file, by its suffix, or by its first bytes where that says nothing.

    Raises:
        CheckpointError: it is missing, damaged, or of another kind.
    """
    check_is_file(path)
    kind = _kind_of(path)
    if kind is Safetensors:
        return Content(*_read_safetensors(path))
    if kind is Pickle:
        return Content(load_pickle(path), Pickle(old_format=not is_zip(path)))
    raise CheckpointError(
        f"{path} does not have the name of a weights file; expected one of {KINDS}."
    )


def check_is_file(path: Path) -> None:
    """Refuse what is no file, or an empty one.

    Raises:
        CheckpointError: saying so.
    """
    if not path.is_file():
        found = "is a folder, a pipe or the like" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {found}; expected a file of weights ({KINDS}).")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; its download or copy was cut short.")


def _kind_of(path: Path) -> type[Safetensors] | type[Pickle] | None:
    if path.suffix in SAFETENSORS or _begins_as_safetensors(path):
        return Safetensors  # some have the suffix .ckpt
    if path.suffix in PICKLES or is_zip(path):
        return Pickle
    with path.open("rb") as file:
        return Pickle if file.read(1) == b"\x80" else None


def _begins_as_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a header and a header."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and length < path.stat().st_size


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Safetensors]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            # Copies: a tensor of safetensors looks into the file, which may be cut or changed.
            tensors = {name: file.get_tensor(name).clone() for name in names}
            return tensors, Safetensors(file.metadata())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not an intact safetensors file ({escaped(first_lines(error, 1))}): it is "
            "cut short, damaged, or of another kind. Download or save it again."
        ) from error


def separate(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors, no two in one memory, as safetensors has them."""
    used: set[int] = set()
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage._cdata in used or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        used.add(tensor.untyped_storage()._cdata)
        result[name] = tensor
    return result


def compact(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that are not parts of larger memory, which torch.save would write whole."""
    made: dict[tuple[object, ...], torch.Tensor] = {}

    def own(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided:
            return tensor
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        kept = tensor if whole else tensor.detach().clone()
        return made.setdefault(storage_identity(tensor), kept)

    return {name: own(tensor) for name, tensor in state.items()}
