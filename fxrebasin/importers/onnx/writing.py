"""Files written back: the same model, in which some tensors hold other numbers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx.wire import Weight, write_filled
from fxrebasin.exporters.verify.runs import MadeWhenAsked
from fxrebasin.facts import bytes_text
from fxrebasin.importers.onnx.data_files import Outside, write_into
from fxrebasin.importers.onnx.graph import Key, Parsed, stored_tensors
from fxrebasin.importers.onnx.loading import is_text
from fxrebasin.importers.onnx.sharing import parted, unshare
from fxrebasin.importers.onnx.tensors import (
    bits_of,
    bytes_of,
    external_path,
    is_external,
    is_left,
    place_of,
)
from fxrebasin.storage.content_names import named_by_content
from fxrebasin.storage.files import refuse_existing, replacing

_FIELDS: Mapping[int, tuple[str, type[np.generic]]] = {
    TensorProto.FLOAT: ("float_data", np.float32),
    TensorProto.DOUBLE: ("double_data", np.float64),
    TensorProto.FLOAT16: ("int32_data", np.uint16),
    TensorProto.BFLOAT16: ("int32_data", np.uint16),
}
"""Where numbers of each type are kept one by one, and as what."""

_LARGEST = 2**31


def changed(parsed: Parsed, moved: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Those of the tensors that hold other bits than in the file; each is made when asked for.

    Args:
        parsed: the model.
        moved: tensors by name.
    """
    before = {
        name: parsed.tensors[name]
        for name, tensor in moved.items()
        if not torch.equal(bits_of(tensor), bits_of(parsed.tensors[name]))
    }
    return MadeWhenAsked(before, lambda name, _: moved[name])


@contextmanager
def draft(
    proto: ModelProto,
    parsed: Parsed,
    tensors: Mapping[str, Tensor],
    out: Path,
    folder: Path | None,
    *,
    overwrite: bool,
) -> Iterator[Path]:
    """A file that is made beside its place, and moved there when the block ends without an error.

    Nodes, names, their order, and all else that the file says are as they were, but for nodes that
    shared a tensor with others and now need one of their own. Data that were in files of their own
    are so again, beside the result, under names of their content.

    Args:
        proto: the model; left as it is.
        parsed: the same, read.
        tensors: new content, by name.
        out: where to write.
        folder: where the data of the model are, if they are in files of their own.
        overwrite: replace files that exist.

    Raises:
        InputError: a file exists, or cannot be written.
    """
    if is_text(out):
        raise InputError(
            f"{out} cannot be written: by its name it is read as text, and ONNX files are written "
            "in their binary form. Name it .onnx"
        )
    copied = ModelProto()
    copied.CopyFrom(proto)
    own_tensors = unshare(copied, parsed, parted(parsed, tensors))
    refuse_existing([out], overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out, overwrite=overwrite) as path:
            external = _external(copied)
            data = _copies_of_data(external, path, folder)
            new = {parsed.stored[name]: name for name in tensors if name not in parsed.uses}
            new.update({(parsed.stored[n][0], own.name): n for n, own in own_tensors.items()})
            content = {key: partial(_content, parsed, tensors, name) for key, name in new.items()}
            for key, item in stored_tensors(copied.graph):
                if key in content and not is_external(item) and not is_left(item):
                    _store(item, content[key]())
            write_into(data, [Outside(item, content.get(key)) for key, item in external])
            names = {at: named_by_content(file, out.name).name for at, file in data.items()}
            for _, item in external:
                for entry in item.external_data:
                    entry.value = names[entry.value] if entry.key == "location" else entry.value
            _write(copied, parsed, tensors, own_tensors, path)
            yield path
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from error


def _write(
    proto: ModelProto,
    parsed: Parsed,
    tensors: Mapping[str, Tensor],
    added: Mapping[str, TensorProto],
    path: Path,
) -> None:
    """Write a model, with data that were left in the file that it was read from.

    Args:
        proto: the model.
        parsed: as it was read.
        tensors: new content, by name.
        added: initializers that were added, by the names of what they hold.
        path: of the file.
    """
    names = {
        local: name
        for name, (scope, local) in parsed.stored.items()
        if not scope and name not in parsed.uses
    }
    names.update({own.name: name for name, own in added.items() if is_left(own)})

    def weight(header: TensorProto) -> Weight:
        name = names[header.name]
        size = parsed.tensors[name].nbytes
        return Weight(header, size, lambda: bytes_of(tensors.get(name, parsed.tensors[name])))

    weights = {item.name: weight(item) for item in proto.graph.initializer if is_left(item)}
    if sum(item.size for item in weights.values()) >= _LARGEST:
        raise InputError(
            f"{path.name} would take more than the {bytes_text(_LARGEST)} that an ONNX file may: "
            "nodes that read one tensor need different orders of it. Keep the weights of the model "
            "in a file of their own (onnx.save, save_as_external_data=True)"
        )
    write_filled(proto, weights, path)


def _content(parsed: Parsed, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return tensors[name] if name in tensors else parsed.tensors[name]


def _external(proto: ModelProto) -> list[tuple[Key, TensorProto]]:
    return [(key, item) for key, item in stored_tensors(proto.graph) if is_external(item)]


def _copies_of_data(
    external: Sequence[tuple[Key, TensorProto]], path: Path, folder: Path | None
) -> dict[str, Path]:
    """Copies of the files of data, by where the model says that these are.

    Args:
        external: tensors whose data are in files.
        path: of the model that is written.
        folder: of the model.
    """
    found: dict[str, Path] = {}
    for _, item in external:
        location = place_of(item)[0]
        if location not in found:
            found[location] = path.with_name(f"{path.name}.{len(found)}.data")
            shutil.copyfile(external_path(item, folder), found[location])
    return found


def _store(stored: TensorProto, tensor: Tensor) -> None:
    """Put numbers where the file had others, in the same encoding."""
    if stored.HasField("raw_data"):
        stored.raw_data = bytes_of(tensor)
        return
    name, kind = _FIELDS[stored.data_type]
    values = np.frombuffer(bytes_of(tensor), kind)
    field = getattr(stored, name)
    del field[:]
    field.extend(values.tolist())
