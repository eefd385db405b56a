"""Models by name: each form, and every way in which a name can be wrong."""

from __future__ import annotations

import json
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


def test_nothing_is_downloaded_for_a_detector(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    assert isinstance(build_model("torchvision:ssdlite320_mobilenet_v3_large"), nn.Module)


SMALL_GPT2 = {
    **{"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2},
    **{"vocab_size": 11, "n_positions": 16},
}


@pytest.mark.parametrize(
    ("architectures", "kind"), [(["GPT2LMHeadModel"], "GPT2LMHeadModel"), (None, "GPT2Model")]
)
def test_a_hugging_face_configuration(tmp_path, architectures, kind):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SMALL_GPT2, "architectures": architectures}))
    assert type(build_model(str(path))).__name__ == kind


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "no-such-model"}'])
def test_a_file_that_is_no_configuration(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a Hugging Face configuration"):
        build_model(str(path))


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

    monkeypatch.setattr("fxrebasin.models.by_name.importlib.import_module", fail)
    with pytest.raises(InputError, match=message):
        build_model("timm:convnext_atto")
