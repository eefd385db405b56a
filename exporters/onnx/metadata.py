"""What an ONNX file says about where it comes from."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from fxrebasin.alignment import Certificate
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.digests import INPUTS_KEY, state_digest

_PACKAGES = ("fxrebasin", "torch", "onnx", "onnxscript")


def origin_of(model: nn.Module, options: Mapping[str, Any]) -> dict[str, str]:
    """Entries for the `metadata_props` of a file; the same for the same inputs and versions.

    `fxrebasin.state` is the digest of the exported state, `fxrebasin.versions` and
    `fxrebasin.options` are JSON. If `transform` made the model, `fxrebasin.certificate` is the
    digest of the permutation's file, and `fxrebasin.model` and `fxrebasin.reference` are those of
    the two states that it was given.

    Args:
        model: what is exported.
        options: how, as far as JSON can say it.
    """
    versions = {package: version(package) for package in _PACKAGES}
    origin = {
        "fxrebasin.state": state_digest(dict(model.state_dict())),
        "fxrebasin.versions": json.dumps(versions, sort_keys=True),
        "fxrebasin.options": json.dumps(options, sort_keys=True),
    }
    meta = getattr(model, "meta", None)
    if not isinstance(meta, Mapping):
        return origin
    report = meta.get("fxrebasin")
    if isinstance(report, RebasinReport):
        origin["fxrebasin.certificate"] = _file_digest(report.certificate)
    given = meta.get(INPUTS_KEY, {})
    return origin | {f"fxrebasin.{name}": digest for name, digest in given.items()}


def _file_digest(permutation: Certificate) -> str:
    """A digest of the file that a permutation is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "permutation.safetensors"
        permutation.save(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
