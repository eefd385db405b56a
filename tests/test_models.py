"""Models by name: each form, and every way in which a name can be wrong."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.models.by_name import build_model


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A working directory with a module of the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Linear(3, 2)\n"
        "def needs(width): return nn.Linear(width, 2)\n"
        "def number(): return 5\n"
        "ready = nn.Linear(4, 2)\n"
        "five = 5\n"
        "class Zoo:\n"
        "    net = staticmethod(net)\n"
    )
    yield
    sys.modules.pop("mynets", None)


def test_a_callable_of_the_users_is_found_in_the_working_directory(code):
    path = list(sys.path)
    assert build_model("mynets:net").in_features == 3
    assert build_model("mynets:Zoo.net").in_features == 3
    assert build_model("mynets:ready").in_features == 4
    assert sys.path == path


def test_weights_are_the_same_each_time_and_the_generator_is_left_alone(code):
    before = torch.get_rng_state()
    assert build_model("mynets:net").weight.equal(build_model("mynets:net").weight)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "names no model; write torchvision:NAME"),
        (":net", "names no model"),
        ("mynets:", "names no model"),
        ("mynets:nothing", "has no 'nothing'"),
        ("mynets:five", "is a int, not a model or a callable"),
        ("mynets:number", "returned a int, not a torch.nn.Module"),
        ("mynets:needs", "cannot be called without arguments .*'width'"),
        ("nowhere.nets:net", "no module named 'nowhere'"),
        ("torchvision:resnet19", "no model 'resnet19'; did you mean resnet"),
        ("torchvision:xyzzy", "no model 'xyzzy'$"),
        ("mynets:needs?width", "'width' in 'mynets:needs.width' is no keyword argument"),
        ("mynets:needs?width=1&width=2", "gives width twice"),
        ("mynets:needs?widht=1", "has no keyword argument 'widht'; did you mean width"),
        ("mynets:ready?width=1", "exists already, has no keyword argument 'width'; it has none"),
        ("timm:resnet18?num_clases=10", "'num_clases'; did you mean num_classes"),
        ("timm:resnet18?pretrained=True", "pretrained cannot be given: nothing is downloaded"),
        ("timm:resnet18?num_classes='ten'", "cannot be built with num_classes='ten'"),
        ("torchvision:resnet18?num_class=10", "'num_class'; did you mean num_classes"),
        # Its class would pass over what it does not know.
        ("torchvision:ssdlite320_mobilenet_v3_large?num_class=3", "did you mean num_classes"),
        ("torchvision:resnet18?weights='DEFAULT'", "weights cannot be given"),
        ("timm:convnext_ato", "did you mean convnext_atto"),
        ("missing.json", "no Hugging Face configuration at missing.json"),
    ],
)
def test_what_names_no_model_is_refused(code, name, message):
    with pytest.raises(InputError, match=message):
        build_model(name)


def test_torchvision_and_timm_without_weights():
    assert isinstance(build_model("torchvision:squeezenet1_1"), nn.Module)
    assert build_model("timm:convnext_atto").num_classes == 1000


def test_arguments_come_after_a_question_mark(code):
    assert build_model("mynets:needs?width=5").in_features == 5
    timm = build_model("timm:resnet10t?num_classes=4&in_chans=1&global_pool=max")
    assert (timm.num_classes, timm.global_pool.pool_type) == (4, "max")
    features = build_model("timm:resnet10t?features_only=True&in_chans=1&out_indices=(1, 2)")
    assert [y.shape[1] for y in features(torch.zeros(1, 1, 32, 32))] == [64, 128]
    torchvision = build_model("torchvision:squeezenet1_1?num_classes=4")
    assert torchvision(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


def test_what_is_called_with_arguments_is_the_same_each_time(code):
    first, second = (build_model("timm:resnet10t?num_classes=4") for _ in range(2))
    assert first.fc.weight.equal(second.fc.weight)


def test_nothing_is_downloaded_for_a_detector(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    assert isinstance(build_model("torchvision:ssdlite320_mobilenet_v3_large"), nn.Module)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("no", name="timm"), r"pip install 'fxrebasin\[models\]'"),
        (RuntimeError("undefined symbol: _ZN5torch3jit17parseSchema"), "the same package index"),
    ],
)
def test_a_library_that_cannot_be_imported(monkeypatch, error, message):
    def fail(name):
        raise error

    monkeypatch.setattr("fxrebasin.models.library_imports.importlib.import_module", fail)
    with pytest.raises(InputError, match=message):
        build_model("timm:convnext_atto")
