"""Recipes in the form of mergekit, as far as whole models are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxrebasin.errors import InputError

_METHODS = {
    "linear": "mean",
    "slerp": "slerp",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare_linear": "dare",
}
_OWN = ("models", "merge_method", "base_model", "parameters", "dtype", "out_dtype")
_GLOBAL = {"t": "t", "density": "density", "lambda": "scale"}
_WITHOUT_EFFECT = ("int8_mask", "normalize")


def is_mergekit(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe is written for mergekit."""
    return "merge_method" in recipe or "slices" in recipe


def translated(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a recipe of this package; keys that are not mergekit's are kept.

    Args:
        recipe: has `merge_method`.

    Raises:
        InputError: it asks for what is not done here.

    Example:
        >>> models = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
        >>> translated({"merge_method": "linear", "models": models})["weights"]
        [0.5, 0.5]
    """
    if "slices" in recipe:
        raise InputError("slices, which pick layers of models, are not supported: list models")
    method = recipe["merge_method"]
    if method not in _METHODS:
        raise InputError(
            f"merge_method {method!r} is not supported; there are: {', '.join(_METHODS)}"
        )
    base = recipe.get("base_model")
    entries = [_entry(item) for item in recipe.get("models") or ()]
    names = [name for name, _ in entries]
    parameters = dict(recipe.get("parameters") or {})
    found = {key: value for key, value in recipe.items() if key not in _OWN}
    found |= {"command": "merge", "combine": _METHODS[method]}
    if method == "slerp":
        names = [str(base), *(name for name in names if name != base)] if base else names
    elif base is not None:
        entries = [(name, own) for name, own in entries if name != base or own]
        names = [name for name, _ in entries]
        found["base"] = base
    found["models"] = names if "model" in found else [names[0], *names] if names else []
    weights = [own["weight"] for _, own in entries if "weight" in own]
    if weights and len(weights) != len(entries):
        raise InputError("some models have a weight and some have none")
    if weights:
        found["weights"] = _by_filter(weights)
    _take_density(entries, parameters)
    for key, value in parameters.items():
        if key in _GLOBAL:
            found[_GLOBAL[key]] = _filtered(value)
        elif key not in _WITHOUT_EFFECT:
            raise InputError(
                f"parameters: {key!r} is not supported; there are: {', '.join(_GLOBAL)}"
            )
    dtype = recipe.get("out_dtype") or recipe.get("dtype")
    return {**found, "dtype": dtype} if dtype else found


def _entry(item: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(item, Mapping) or "model" not in item:
        raise InputError(f"models: {item!r} has no 'model'")
    return str(item["model"]), dict(item.get("parameters") or {})


def _take_density(
    entries: Sequence[tuple[str, Mapping[str, Any]]], parameters: dict[str, Any]
) -> None:
    """One density for all models."""
    densities = [own["density"] for _, own in entries if "density" in own]
    if any(density != densities[0] for density in densities):
        raise InputError(f"models have different densities, {densities}; one for all is supported")
    if densities:
        parameters.setdefault("density", densities[0])


def _by_filter(weights: Sequence[Any]) -> Any:
    """Weights of several models, by pattern if they are given by filter."""
    each = [_filtered(weight) for weight in weights]
    if not any(isinstance(weight, Mapping) for weight in each):
        return each
    patterns = dict.fromkeys(p for w in each if isinstance(w, Mapping) for p in w)
    return {
        pattern: [w.get(pattern, w.get("*", 1.0)) if isinstance(w, Mapping) else w for w in each]
        for pattern in patterns
    }


def _filtered(value: Any) -> Any:
    """A number, or numbers by pattern: in mergekit the first filter that fits counts."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(item, Mapping) and "value" in item for item in value):
        raise InputError(f"{value!r}: gradients over layers are not supported; use filters")
    found = {}
    for item in reversed(value):
        pattern = f"*{item['filter']}*" if item.get("filter") not in (None, "*") else "*"
        if isinstance(item["value"], list):
            raise InputError(f"{item['value']!r}: gradients over layers are not supported")
        found[pattern] = item["value"]
    return found
