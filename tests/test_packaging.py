"""The built wheel holds one top-level package, complete and typed, and works without the source."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "fxrebasin": "fxrebasin",
    "passes": "fxrebasin/passes",
    "exporters": "fxrebasin/exporters",
}
PROBE = """
import importlib, importlib.metadata, importlib.util, json, sys
names = ["fxrebasin", "fxrebasin.passes", "fxrebasin.passes.rules", "fxrebasin.exporters"]
script, = importlib.metadata.entry_points(group="console_scripts", name="fxrebasin")
json.dump({
    "files": {name: importlib.import_module(name).__file__ for name in names},
    "version": importlib.import_module("fxrebasin").__version__,
    "strays": [name for name in ("passes", "exporters") if importlib.util.find_spec(name)],
    "command": callable(script.load()),
}, sys.stdout)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return its output, or fail with everything it printed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def declared_requirements(wheel: Path) -> list[Requirement]:
    """What the wheel's metadata asks for, extras included."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy, cwd=copy)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Interpreter and site-packages of a new environment that sees our dependencies, not us.

    The path file makes the libraries of this environment importable; path files found in *there*
    are not read, so the finder of an editable install stays out.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(run(python, "-I", "-c", where, cwd=home).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python, site


def test_the_wheel_has_one_top_level_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"fxrebasin", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}


def test_the_wheel_holds_every_module_and_the_type_marker(wheel: Path) -> None:
    expected = {
        f"{target}/{path.relative_to(ROOT / source).as_posix()}"
        for source, target in SOURCES.items()
        for path in (ROOT / source).rglob("*.py")
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("fxrebasin/")}
    assert packed == expected | {"fxrebasin/py.typed", "fxrebasin/show/page.html"}


def test_the_installed_wheel_imports_from_another_directory(
    wheel: Path, empty_environment: tuple[Path, Path], tmp_path: Path
) -> None:
    python, site = empty_environment
    absent = "import importlib.util, torch; print(importlib.util.find_spec('fxrebasin'))"
    assert run(python, "-I", "-c", absent, cwd=tmp_path).strip() == "None"

    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps")
    run(*pip, wheel, cwd=tmp_path)
    found = json.loads(run(python, "-I", "-c", PROBE, cwd=tmp_path))

    assert found["files"] == {
        "fxrebasin": str(site / "fxrebasin" / "__init__.py"),
        "fxrebasin.passes": str(site / "fxrebasin" / "passes" / "__init__.py"),
        "fxrebasin.passes.rules": str(site / "fxrebasin" / "passes" / "rules" / "__init__.py"),
        "fxrebasin.exporters": str(site / "fxrebasin" / "exporters" / "__init__.py"),
    }
    assert found["strays"] == []
    assert found["command"]
    assert found["version"] == wheel.name.split("-")[1]
    assert not (site / "passes").exists()
    assert not (site / "exporters").exists()


@pytest.mark.parametrize(
    ("system", "machine", "runtime"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
    ],
)
def test_each_machine_gets_exactly_one_onnxruntime(
    wheel: Path, system: str, machine: str, runtime: str
) -> None:
    facts = {"sys_platform": system, "platform_machine": machine, "extra": ""}
    chosen = [
        requirement.name
        for requirement in declared_requirements(wheel)
        if requirement.name.startswith("onnxruntime")
        and (requirement.marker is None or requirement.marker.evaluate(facts))
    ]
    assert chosen == [runtime]


def test_the_pins_satisfy_the_declared_ranges(wheel: Path) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    for requirement in declared_requirements(wheel):
        versions = [
            next(iter(pin.specifier)).version for pin in pins if pin.name == requirement.name
        ]
        assert versions, f"{requirement.name} is not pinned in constraints.txt"
        for version in versions:
            assert version in requirement.specifier, f"{requirement.name}=={version}"
