"""The file format of an alignment: that of a permutation, with elements of groups and gauges.

Tensors `element.<class>` hold the elements, in float64; `factor.<gauge>.<number>.<class>` and
`added.<gauge>.<state>` what the two gauges are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.groups import Groups
from fxrebasin.kinds import Behind, ClassKind, GroupKind, Place
from fxrebasin.layout import Layout
from fxrebasin.places import parts_of
from fxrebasin.storage import certificate
from fxrebasin.storage.certificate import Array, Contents, between, text, whole

FORMAT = "fxrebasin.alignment"

_LARGEST_POWER = 2**10  # of a factor; those of models are of a few


@dataclass(frozen=True)
class GaugeValues:
    """What a state holds where it may choose, since other parameters make up for it.

    Attributes:
        factors: of units, by the name of the class; each of shape (copies, units). The canonical
            state has ones.
        added: what has to be added to state tensors to come to the canonical state: shifts are
            zero there, and what makes up for them depends on other tensors of the state.
        marks: numbers by which the state is known for which `added` is right: by name, the
            Euclidean norm of a tensor and its product with fixed numbers.
    """

    factors: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    added: Mapping[str, Tensor] = field(default_factory=dict)
    marks: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class AlignmentContents:
    """All that an alignment is made of.

    Attributes:
        permutation: classes, arrays, layout and so on.
        groups: kinds by the name of the class, and classes that are turned in pairs.
        elements: of the groups, by the name of the class.
        source: the gauge of what it acts on.
        target: the gauge of the result.
        ties: other names of state tensors, with the name that `groups` has for them.
    """

    permutation: Contents
    groups: Groups
    elements: Mapping[str, Tensor]
    source: GaugeValues
    target: GaugeValues
    ties: Mapping[str, str]


def payload(contents: AlignmentContents) -> bytes:
    """What the file of an alignment holds; the same bytes for the same contents.

    Args:
        contents: what it holds.
    """
    tensors, document = certificate.described(contents.permutation)
    tensors |= {f"element.{name}": _numpy(item) for name, item in contents.elements.items()}
    groups = contents.groups
    document["kinds"] = {name: _kind_document(own) for name, own in groups.kinds.items()}
    document["turned"] = [certificate.class_document(c) for c in groups.turned]
    document["turned_layout"] = certificate.layout_document(groups.turned_layout, tensors)
    document["still"] = [certificate.class_document(c) for c in groups.still]
    document["still_layout"] = certificate.layout_document(groups.still_layout, tensors)
    document["ties"] = dict(contents.ties)
    for side in ("source", "target"):
        gauge: GaugeValues = getattr(contents, side)
        for name, factors in gauge.factors.items():
            for number, item in enumerate(factors):
                tensors[f"factor.{side}.{number}.{name}"] = _numpy(item)
        tensors |= {f"added.{side}.{name}": _numpy(item) for name, item in gauge.added.items()}
        document[side] = {
            "factors": {name: len(factors) for name, factors in gauge.factors.items()},
            "added": list(gauge.added),
            "marks": {name: list(mark) for name, mark in gauge.marks.items()},
        }
    return certificate.packed(FORMAT, tensors, document)


def read(path: Path) -> AlignmentContents:
    """Read and check an alignment. Call it inside `certificate.naming`, which words what is wrong.

    Args:
        path: of the file.

    Raises:
        InputError: it is another file, or what it holds is no alignment.
    """
    tensors, document = certificate.unpacked(path, FORMAT, "an alignment")
    permutation = certificate.contents_from(tensors, document)
    kinds = {text(name): _kind(entry) for name, entry in document["kinds"].items()}
    turned = tuple(certificate.class_from(entry) for entry in document["turned"])
    still = tuple(certificate.class_from(entry) for entry in document.get("still", ()))
    certificate.check_copies((*turned, *still), permutation[0])
    own = certificate.layout_from(document["turned_layout"], tensors)
    places = certificate.layout_from(document.get("still_layout", {}), tensors)
    groups = Groups(kinds, permutation[2], turned, own, still=still, still_layout=places)
    _check_places(groups)
    prefix = "element."
    elements = {
        key.removeprefix(prefix): _tensor(tensors, key) for key in tensors if key.startswith(prefix)
    }
    ties = {text(alias): text(name) for alias, name in document["ties"].items()}
    source, target = (_gauge(document[side], side, tensors) for side in ("source", "target"))
    return AlignmentContents(permutation, groups, elements, source, target, ties)


def _gauge(entry: Mapping[str, Any], side: str, tensors: Mapping[str, Array]) -> GaugeValues:
    factors = {
        text(name): tuple(
            _tensor(tensors, f"factor.{side}.{number}.{name}")
            for number in range(between(count, 0, len(tensors)))
        )
        for name, count in entry["factors"].items()
    }
    added = {text(name): _tensor(tensors, f"added.{side}.{name}") for name in entry["added"]}
    marks = {
        text(name): (float(norm), float(mark)) for name, (norm, mark) in entry["marks"].items()
    }
    return GaugeValues(factors, added, marks)


def _kind_document(own: ClassKind) -> dict[str, Any]:
    return {
        "kind": own.kind.value,
        "parts": [
            [
                _place_document(place),
                part.variance,
                [*map(_place_document, part.factors)],
                part.reads,
            ]
            for place, part in own.parts.items()
        ],
        "scales": _powers_document(own.scales),
        "signs": _powers_document(own.signs),
        "factors": [_powers_document(factor) for factor in own.factors],
        "limits": list(own.limits),
        "partner": list(own.partner),
        "offsets": [[_place_document(place), offset] for place, offset in own.offsets.items()],
    }


def _kind(entry: Mapping[str, Any]) -> ClassKind:
    parts = {
        _place(place): Behind(between(variance, -1, 1), tuple(map(_place, factors)), reads is True)
        for place, variance, factors, reads in entry["parts"]
    }
    return ClassKind(
        GroupKind(entry["kind"]),
        parts,
        _powers(entry["scales"]),
        _powers(entry["signs"]),
        tuple(map(_powers, entry["factors"])),
        tuple(map(text, entry["limits"])),
        tuple(map(whole, entry["partner"])),
        {_place(place): float(offset) for place, offset in entry.get("offsets", ())},
    )


def _check_places(groups: Groups) -> None:
    """Refuse places that the layouts do not have."""
    for name, own in groups.kinds.items():
        layout = groups.layout_of(name)
        further = [place for part in own.parts.values() for place in part.factors]
        for place in (*own.parts, *own.scales, *own.signs, *(p for f in own.factors for p in f)):
            _check_place(place, layout)
        further += own.offsets
        for place in further:
            _check_place(place, layout)


def _check_place(place: Place, layout: Layout) -> None:
    found = layout.get(place.state, ())
    pieces = found[place.group].pieces if 0 <= place.group < len(found) else ()
    slots = pieces[place.piece].slots if 0 <= place.piece < len(pieces) else ()
    there = 0 <= place.slot < len(slots)
    if not (there and 0 <= place.part < len(parts_of(pieces[place.piece]))):
        raise InputError(f"{place} is not in the layout")


def _place_document(place: Place) -> list[Any]:
    return [place.state, place.group, place.piece, place.slot, place.part]


def _place(entry: Sequence[Any]) -> Place:
    state, group, piece, slot, part = entry
    return Place(text(state), whole(group), whole(piece), whole(slot), whole(part))


def _powers_document(powers: Mapping[Place, int]) -> list[Any]:
    return [[_place_document(place), power] for place, power in powers.items()]


def _powers(entry: Sequence[Any]) -> dict[Place, int]:
    return {
        _place(place): between(power, -_LARGEST_POWER, _LARGEST_POWER) for place, power in entry
    }


def _numpy(item: Tensor) -> Array:
    return np.ascontiguousarray(item.detach().cpu().numpy())


def _tensor(tensors: Mapping[str, Array], name: str) -> Tensor:
    found = tensors[name]
    if found.dtype != np.float64:
        raise InputError(f"{name} has dtype {found.dtype} instead of float64")
    return torch.from_numpy(found.copy())
