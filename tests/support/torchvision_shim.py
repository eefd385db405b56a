"""The tests' name for the import shim; it lives beside the benchmarks, which need it too."""

from __future__ import annotations

from benchmarks.support.torchvision_shim import ensure_torchvision

__all__ = ["ensure_torchvision"]
