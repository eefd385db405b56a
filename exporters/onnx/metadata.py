"""What an ONNX file says about where it comes from."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import nn

from fxrebasin.alignment import Certificate
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.digests import INPUTS_KEY, state_digest

_SIZES_KEY = "fxrebasin.sizes"
_PACKAGES = ("fxrebasin", "torch", "onnx", "onnxscript")


def origin_of(
    model: nn.Module, options: Mapping[str, Any], sizes: Sequence[Mapping[str, int]] = ()
) -> dict[str, str]:
    """Entries for the `metadata_props` of a file; the same for the same inputs and versions.

    `fxrebasin.state` is the digest of the exported state, `fxrebasin.versions` and
    `fxrebasin.options` are JSON, and so is `fxrebasin.sizes`, if there are several: a graph may run
    on sizes that the model refuses, and be another function there. If `transform` made the model,
    `fxrebasin.certificate` is the digest of the permutation's file, and `fxrebasin.model` and
    `fxrebasin.reference` are those of the two states that it was given.

    Args:
        model: what is exported.
        options: how, as far as JSON can say it.
        sizes: of open axes, by their labels, on which the file is compared with the model.
    """
    versions = {package: version(package) for package in _PACKAGES}
    origin = {
        "fxrebasin.state": state_digest(dict(model.state_dict())),
        "fxrebasin.versions": json.dumps(versions, sort_keys=True),
        "fxrebasin.options": json.dumps(options, sort_keys=True),
    }
    distinct = [dict(pairs) for pairs in dict.fromkeys(tuple(one.items()) for one in sizes)]
    if len(distinct) > 1:
        origin[_SIZES_KEY] = json.dumps(distinct)
    meta = getattr(model, "meta", None)
    if not isinstance(meta, Mapping):
        return origin
    report = meta.get("fxrebasin")
    if isinstance(report, RebasinReport):
        origin["fxrebasin.certificate"] = _file_digest(report.certificate)
    given = meta.get(INPUTS_KEY, {})
    return origin | {f"fxrebasin.{name}": digest for name, digest in given.items()}


def proved_sizes(file: ModelProto) -> tuple[dict[str, int], ...]:
    """Sizes of open axes, by their labels, on which a file says that it was compared.

    Args:
        file: of any origin; what is not of the form that `origin_of` writes says nothing.

    Example:
        >>> proved_sizes(ModelProto())
        ()
    """
    texts = [entry.value for entry in file.metadata_props if entry.key == _SIZES_KEY]
    try:
        found = json.loads(texts[0]) if texts else []
    except ValueError:
        return ()
    return tuple(one for one in found if _are_sizes(one)) if isinstance(found, list) else ()


def _are_sizes(found: Any) -> bool:
    return isinstance(found, dict) and all(type(n) is int and n > 0 for n in found.values())


def _file_digest(permutation: Certificate) -> str:
    """A digest of the file that a permutation is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "permutation.safetensors"
        permutation.save(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
