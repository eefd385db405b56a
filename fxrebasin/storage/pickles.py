"""PyTorch's own files, read without running code from them.

torch's restricted loader makes tensors, containers and numbers, and nothing else. Training scripts
also keep their arguments, paths, times and NumPy's numbers there. These plain types are allowed
here as well, while a file is read and no longer; everything else is refused by its name.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import importlib
import pathlib
import pickle
import re
import struct
import threading
import types
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import _weights_only_unpickler as restricted

from fxrebasin.errors import CheckpointError
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.default_dicts import DefaultDicts
from fxrebasin.storage.numpy_objects import NUMPY
from fxrebasin.wording import escaped, listed

_PATHS = ("pathlib", "pathlib._local")  # the second is the place in Python 3.13
_WINDOWS = pathlib.PureWindowsPath if pathlib.PosixPath is type(Path()) else pathlib.WindowsPath
_POSIX = pathlib.PosixPath if pathlib.PosixPath is type(Path()) else pathlib.PurePosixPath

ALLOWED: Mapping[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "collections.defaultdict": collections.defaultdict,
    "datetime.date": datetime.date,
    "datetime.datetime": datetime.datetime,
    "datetime.time": datetime.time,
    "datetime.timedelta": datetime.timedelta,
    "datetime.timezone": datetime.timezone,
    "decimal.Decimal": decimal.Decimal,
    "fractions.Fraction": fractions.Fraction,
    "uuid.UUID": uuid.UUID,
    **{
        f"builtins.{kind.__name__}": kind
        for kind in (bool, bytes, dict, float, frozenset, int, list, range, slice, str, tuple)
    },
    **{f"{m}.PosixPath": _POSIX for m in _PATHS},
    **{f"{m}.WindowsPath": _WINDOWS for m in _PATHS},
    **{f"{m}.{kind.__name__}": kind for m in _PATHS for kind in (
        pathlib.PurePosixPath, pathlib.PureWindowsPath
    )},
    **NUMPY,
}  # fmt: skip
"""What may be made while a file is read, by the name in the file: values without a will."""

_OMEGACONF = {
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": (
        "AnyNode",
        "BooleanNode",
        "BytesNode",
        "FloatNode",
        "IntegerNode",
        "PathNode",
        "StringNode",
    ),
    "typing": ("Any",),
}
"""Configurations as Hydra's users keep them: values, which are not looked at here."""

DAMAGE = (
    *(OSError, ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError),
    *(AssertionError, ArithmeticError, MemoryError, ImportError, NotImplementedError),
    SystemError,
    *(struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError),
)
"""What the readers of damaged files raise."""

# Words of torch's advice to load a file unrestrictedly, which would run what is in it.
_ADVICE = re.compile(r"weights[_ -]only|safe_?globals|trust|pickle_module", re.IGNORECASE)

_FOLDER = 0x10  # what MS-DOS kept of a folder, and zip archives do

_lock = threading.RLock()


def load_pickle(path: Path) -> Any:
    """What is in a file of `torch.save`, on the CPU, and in memory whatever becomes of the file.

    Raises:
        CheckpointError: the file is damaged, or holds objects of other types than `ALLOWED`.
    """
    _check_records(path)
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program with its weights. Save the weights of the "
            "model that it was made from: `torch.save(model.state_dict(), path)`."
        )
    unknown = _unknown_types(path)
    also = _configurations(unknown)
    unknown = [name for name in unknown if name not in also]
    if unknown:
        raise _refusal(str(path), unknown)
    try:
        with allowing(also) as dicts:
            found = torch.load(path, map_location="cpu", weights_only=True)
            return dicts.restored(found)
    except DAMAGE as error:
        # Without the error of torch, which tells people to load the file unrestrictedly.
        raise _damaged(path, error) from None


def load_bytes(file: IO[bytes], place: str) -> Any:
    """One object that `torch.save` wrote into a larger file.

    Args:
        file: just its bytes.
        place: where that is, for messages.

    Raises:
        CheckpointError: it is of a type that is not in `ALLOWED`, or damaged.
    """
    try:
        with allowing() as dicts:
            return dicts.restored(torch.load(file, map_location="cpu", weights_only=True))
    except DAMAGE as e:
        file.seek(0)
        unknown = _unknown_in_zip(file) if is_zip(file) else []
        if unknown:
            raise _refusal(place, unknown) from None
        raise CheckpointError(f"{place} cannot be read ({_reason(e)}): it is damaged.") from None


@contextmanager
def allowing(also: Mapping[str, Any] | None = None) -> Iterator[DefaultDicts]:
    """While this lasts, torch's restricted loader makes the types of `ALLOWED`, too.

    What the caller's program allowed itself stays allowed, then and later.

    Args:
        also: more of them.
    """
    with _lock:
        dicts = DefaultDicts()
        allowed = {**ALLOWED, **(also or {}), "collections.defaultdict": dicts.make}
        mine = {(made, name) for name, made in allowed.items()}
        mine -= set(torch.serialization.get_safe_globals())
        with torch.serialization.safe_globals(list(mine)):
            yield dicts


def _configurations(unknown: Sequence[str]) -> dict[str, Any]:
    """The types of OmegaConf among some names, where it is installed; nothing else is imported."""
    wanted = [
        (module, name)
        for module, names in _OMEGACONF.items()
        for name in names
        if f"{module}.{name}" in unknown
    ]
    try:
        return {f"{m}.{n}": getattr(importlib.import_module(m), n) for m, n in wanted}
    except (ImportError, AttributeError):
        return {}


def _unknown_types(path: Path) -> list[str]:
    """Names in a file of what the restricted loader does not make."""
    try:
        if is_zip(path):
            return _unknown_in_zip(path)
        with path.open("rb") as file:
            return _beyond_allowed(_legacy_globals(file))
    except DAMAGE:
        return []  # it is damaged, which the error of loading it tells


def _unknown_in_zip(file: Path | IO[bytes]) -> list[str]:
    if not isinstance(file, Path):
        file.seek(0)
    found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return _beyond_allowed(set(found))


def _legacy_globals(file: BinaryIO) -> set[str]:
    """Names in the older format: three pickles about the format, and then the object."""
    return {name for _ in range(4) for name in restricted.get_globals_in_pkl(file)}


def _beyond_allowed(names: set[str]) -> list[str]:
    own = restricted._get_user_allowed_globals().keys()
    return sorted(names - ALLOWED.keys() - restricted._get_allowed_globals().keys() - own)


def _refusal(place: str, unknown: list[str]) -> CheckpointError:
    types = listed([escaped(name, 100) for name in unknown], 5)
    return CheckpointError(
        f"{place} holds objects other than tensors and plain values: {types}. Making those can run "
        "code from the file, so it is not read. Where they are at home, in the program that wrote "
        "the file, save the weights alone: `torch.save(model.state_dict(), path)`."
    )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read by torch.load ({_reason(error)}): it is cut short, damaged, "
        "or of another kind. Download or save it again."
    )


def _reason(error: Exception) -> str:
    """What was wrong, without torch's advice to load the file unrestrictedly."""
    if isinstance(error, pickle.UnpicklingError) and isinstance(error.__context__, Exception):
        error = error.__context__
    words = first_lines(error, 1)
    return type(error).__name__ if _ADVICE.search(words) else escaped(words, 300)


def is_zip(file: Path | IO[bytes]) -> bool:
    """Whether a file is a zip archive, damaged or not."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # with the marks of one, which do not fit together
        return True


def _check_records(path: Path) -> None:
    """Refuse a file of which a record has another checksum than was written with it."""
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # torch can be told to write none: then all are 0.
            records = archive.infolist()
            broken = archive.testzip() if any(record.CRC for record in records) else None
            # torch would read nothing of them, and take what was in memory for numbers.
            folders = [r.filename for r in records if r.file_size and r.external_attr & _FOLDER]
    except DAMAGE as error:
        raise _damaged(path, error) from None
    if broken is not None:
        raise CheckpointError(
            f"{path} is damaged: its record {escaped(broken)} has another checksum than was "
            "written. Download or save it again."
        )
    if folders:
        raise CheckpointError(
            f"{path} is damaged: its record {escaped(folders[0])} is said to be a folder. Download "
            "or save it again."
        )


def _is_torchscript(path: Path) -> bool:
    if not is_zip(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
