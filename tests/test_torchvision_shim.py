"""torchvision whose compiled operators do not fit the installed torch, and torchvision as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ASKS_FOR_OPERATORS = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.int64)

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.int64)
"""
COMPILED = """
import torch

library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl(name, lambda dets, scores, iou_threshold: scores.argsort(), "CPU")
"""
PACKAGES = {
    "lacks": {"__init__.py": "import torchvision.ops", "ops.py": ASKS_FOR_OPERATORS},
    "has": {
        "__init__.py": "import torchvision.compiled, torchvision.ops",
        **{"compiled.py": COMPILED, "ops.py": ASKS_FOR_OPERATORS},
    },
    "damaged": {"__init__.py": "raise RuntimeError('another reason')"},
}
CHECKS = {
    "lacks": """
try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::nms" in str(error)
else:
    raise AssertionError("the package was to ask for an operator that is not there")
shim.ensure_torchvision()
import torchvision.ops
assert len(shim._libraries) == 1
try:
    torch.ops.torchvision.nms(torch.rand(3, 4), torch.rand(3), 0.5)
except NotImplementedError:
    pass
else:
    raise AssertionError("what is only declared must not run")
shim.ensure_torchvision()
assert len(shim._libraries) == 1
""",
    "has": """
shim.ensure_torchvision()
assert not shim._libraries
scores = torch.tensor([0.3, 0.1, 0.2])
assert torch.ops.torchvision.nms(torch.rand(3, 4), scores, 0.5).tolist() == [1, 2, 0]
""",
    "damaged": """
try:
    shim.ensure_torchvision()
except RuntimeError as error:
    assert str(error) == "another reason"
else:
    raise AssertionError("a fault of another kind was hidden")
assert not shim._libraries
""",
}


@pytest.mark.parametrize("kind", PACKAGES)
def test_operators_are_declared_only_where_they_are_missing(tmp_path: Path, kind: str) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    for name, text in PACKAGES[kind].items():
        (package / name).write_text(text)
    (tmp_path / "check.py").write_text(
        f"import torch\nfrom fxrebasin.models import torchvision_shim as shim\n{CHECKS[kind]}"
    )
    # A process of its own: torchvision is imported once, and its operators are the process's.
    done = subprocess.run(
        [sys.executable, tmp_path / "check.py"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_models_of_torchvision_and_timm_are_built_with_what_is_installed() -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    # Not in this process, where torchvision is imported already.
    code = (
        "from fxrebasin.models.by_name import build_model\n"
        "build_model('timm:resnet10t'), build_model('torchvision:squeezenet1_1')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
