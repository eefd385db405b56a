"""Every public name is documented and typed, its examples run, and its errors are one family."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fxrebasin
import fxrebasin.errors
from fxrebasin.errors import FxRebasinError, FxRebasinWarning

PACKAGES = ("fxrebasin", "fxrebasin.exporters", "fxrebasin.passes")
FUNCTIONS = ("analyze", "match", "apply", "transform", "verify", "export_onnx")
CLASSES = ("Permutation", "Symmetry")


def module_names() -> list[str]:
    """All modules of the project; those in mapped folders are not found by a walk of the root."""
    names = set(PACKAGES)
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        names |= {info.name for info in pkgutil.walk_packages(path, f"{package}.")}
    return sorted(name for name in names if not name.endswith(".__main__"))


MODULES = module_names()
PUBLIC_MODULES = [name for name in MODULES if "._" not in name]


def public_objects(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Classes and functions that a module defines under a public name, and methods of those."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield f"{module.__name__}.{name}", value
        elif inspect.isclass(value):
            yield f"{module.__name__}.{name}", value
            yield from public_methods(f"{module.__name__}.{name}", value)


def public_methods(owner: str, cls: type) -> Iterator[tuple[str, object]]:
    """Methods and properties that a class defines itself."""
    for name in vars(cls):
        if name.startswith("_"):
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        if inspect.isfunction(value) and value.__module__ == cls.__module__:
            yield f"{owner}.{name}", value


def unannotated(function: Callable[..., object]) -> list[str]:
    """Parameters (and `return`) of a function that have no annotation."""
    signature = inspect.signature(inspect.unwrap(function))
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
    ]
    return missing + ["return"] * (signature.return_annotation is signature.empty)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_every_public_name_is_documented_and_typed(name: str) -> None:
    faults = []
    for path, value in public_objects(importlib.import_module(name)):
        if not (inspect.getdoc(value) or "").strip():
            faults.append(f"{path}: no docstring")
        if inspect.isfunction(value):
            faults += [f"{path}: {missing} has no annotation" for missing in unannotated(value)]
    assert not faults, "\n".join(faults)


def test_the_exported_names_are_the_contract() -> None:
    assert {*FUNCTIONS, *CLASSES} <= set(fxrebasin.__all__)
    for name in fxrebasin.__all__:
        value = getattr(fxrebasin, name)
        if callable(value):
            assert inspect.getdoc(value), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_contract_shows_how_it_is_used(name: str) -> None:
    assert ">>> " in (inspect.getdoc(getattr(fxrebasin, name)) or "")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testmod(
        importlib.import_module(name),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert outcome.failed == 0, capsys.readouterr().out


def test_the_errors_are_one_family() -> None:
    strangers = [
        f"{name}.{value.__qualname__}"
        for name in MODULES
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value)
        and issubclass(value, BaseException)
        and value.__module__ == name
        and not issubclass(value, FxRebasinError | FxRebasinWarning)
    ]
    assert not strangers


@pytest.mark.parametrize("name", MODULES)
def test_warnings_are_of_the_class_that_commands_show_in_one_line(name: str) -> None:
    tree = ast.parse(inspect.getsource(importlib.import_module(name)))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    ]
    for call in calls:
        named = {item.arg: ast.unparse(item.value) for item in call.keywords}
        assert named.get("category") == "FxRebasinWarning", f"{name}, line {call.lineno}"


def raised_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each `raise Name` and `raise Name(...)`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name):
                yield node.lineno, raised.id


@pytest.mark.parametrize("name", MODULES)
def test_built_in_errors_are_raised_only_where_python_asks_for_them(name: str) -> None:
    """Attribute and item access must raise these; a command ends with SystemExit.

    An interrupt that a step ended at is passed on.
    """
    protocol = {"AttributeError", "IndexError", "KeyError", "StopIteration", "SystemExit"}
    protocol |= {"KeyboardInterrupt"}
    source = inspect.getsource(importlib.import_module(name))
    strangers = [
        f"line {line}: {raised}"
        for line, raised in raised_names(source)
        if isinstance(getattr(builtins, raised, None), type) and raised not in protocol
    ]
    assert not strangers, f"{name}: raise one of fxrebasin.errors instead; {strangers}"


def test_every_error_says_when_it_is_raised() -> None:
    for name, value in vars(fxrebasin.errors).items():
        if inspect.isclass(value) and not name.startswith("_"):
            assert issubclass(value, FxRebasinError | FxRebasinWarning)
            assert value.__doc__
