"""Import torchvision although its compiled operators do not fit the installed torch.

torchvision's wheels from PyPI are compiled against the CUDA build of torch. Beside a CPU build
their extension does not load, and `import torchvision` (and with it that of timm) then fails on
registering a fake kernel for an operator that was never defined. Models run without these
operators, all but the last step of detectors, so declaring the two that the import asks for is
enough to build every one of them. What calls them still fails, with torch's own message.
"""

from __future__ import annotations

import importlib
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A Library takes its operators with it when it is collected, so one must outlive the import.
_libraries: list[torch.library.Library] = []


def ensure_torchvision() -> None:
    """Make `import torchvision` work; do nothing where it works already.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        RuntimeError: it cannot be imported for another reason than its compiled operators.

    Example:
        >>> ensure_torchvision()
        >>> import torchvision
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _libraries or "torchvision::nms" not in str(error):
            raise
        _forget_partial_import()
        _declare_operators()
        importlib.import_module("torchvision")


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def _forget_partial_import() -> None:
    """Drop the submodules that the failed import left behind, so that the next one is whole."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
