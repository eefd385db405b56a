"""Import torchvision although its compiled operators do not fit the installed torch.

torchvision's wheels from PyPI are compiled against the CUDA build of torch. Beside a CPU build
their extension does not load, and `import torchvision` then fails on registering a fake kernel
for an operator that was never defined. The models use none of these operators, so declaring the
two that the import asks for is enough to build every one of them.
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
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _libraries or "torchvision::nms" not in str(error):
            raise
        _forget_partial_import()
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _libraries.append(library)
        importlib.import_module("torchvision")


def _forget_partial_import() -> None:
    """Drop the submodules that the failed import left behind, so that the next one is whole."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
