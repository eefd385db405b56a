"""An element of a model's symmetry group: it inverts, composes, is stored and is applied."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from fxrebasin.choices import FoundWith
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.facts import Brief, counted
from fxrebasin.gather import permuted, storage_identity
from fxrebasin.indexing import (
    Arrays,
    check_classes,
    check_layout,
    extent,
    gather_index,
    identity_arrays,
    misfits,
    open_grids,
)
from fxrebasin.layout import AxisGroup, IntArray, Layout, PermutationClass, same_layout
from fxrebasin.reliance import Relied, contradictions, refusal
from fxrebasin.sharding import whole
from fxrebasin.storage import certificate
from fxrebasin.wording import listed, spoken

_SHOWN = 10  # differences in a message


@dataclass(frozen=True, eq=False, repr=False)
class Permutation(Brief):
    """One permutation per class (and per copy of a dependent class), with the layout it acts on.

    An array is indexed by the coordinates of the *result* and names where its units come from: the
    unit at `(P, i)` comes from `(source of P, arrays[name][P, i])`, where P are the coordinates in
    the classes that the class is `within`.

    Args:
        classes: the permutation classes.
        arrays: int64, by class name, of shape `(*sizes of within, size)`.
        layout: where the units sit, by state tensor name.
        relies_on: constants of the state that it was found on, without which it may not hold.
        found_with: the outputs that it leaves as they are, and buffers that it takes for state.

    Raises:
        InputError: an array is missing, has another shape or is not a permutation; or the layout
            does not fit the classes.

    Example:
        >>> import numpy as np, torch
        >>> from fxrebasin.layout import AxisGroup, PermutationClass, Piece, Slot
        >>> units = PermutationClass("hidden", 3)
        >>> group = AxisGroup((0,), (Piece((Slot("hidden", 3),), np.arange(3)),))
        >>> p = Permutation((units,), {"hidden": np.array([2, 0, 1])}, {"bias": (group,)})
        >>> p.permute_state_dict({"bias": torch.tensor([10, 11, 12])})["bias"]
        tensor([12, 10, 11])
        >>> p.compose(p.inverse()).is_identity
        True
    """

    classes: tuple[PermutationClass, ...]
    arrays: Arrays
    layout: Layout = field(repr=False)
    relies_on: Relied = field(repr=False, default_factory=dict)
    found_with: FoundWith = field(repr=False, default=FoundWith())

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        check_classes(self.classes)
        check_layout(self.classes, self.layout)
        arrays = {c.name: _checked_array(c, self.classes, self.arrays) for c in self.classes}
        unknown = [name for name in self.arrays if name not in arrays]
        if unknown:
            raise InputError(f"arrays name classes that do not exist: {', '.join(unknown)}")
        object.__setattr__(self, "arrays", arrays)

    @classmethod
    def identity(cls, classes: Sequence[PermutationClass], layout: Layout) -> Permutation:
        """The element that moves nothing.

        Args:
            classes: the permutation classes.
            layout: where their units sit.

        Raises:
            InputError: the classes and the layout do not fit each other.
        """
        return cls(tuple(classes), identity_arrays(classes), layout)

    @classmethod
    def random(cls, classes: Sequence[PermutationClass], layout: Layout, seed: int) -> Permutation:
        """An element drawn uniformly from the group, the same for the same seed.

        Args:
            classes: the permutation classes.
            layout: where their units sit.
            seed: for `numpy.random.default_rng`.

        Raises:
            InputError: the classes and the layout do not fit each other.
        """
        generator = np.random.default_rng(seed)
        arrays = identity_arrays(classes)
        shuffled = {name: generator.permuted(array, axis=-1) for name, array in arrays.items()}
        return cls(tuple(classes), shuffled, layout)

    def relying_on(self, relied: Relied, found_with: FoundWith | None = None) -> Permutation:
        """The same element, for a state with these constants.

        Args:
            relied: what the symmetry that it belongs to relies on.
            found_with: what that was found with; the same as before when left out.
        """
        found = found_with or self.found_with
        if found.architecture is None:
            found = replace(found, architecture=self.found_with.architecture)
        return replace(self, relies_on=dict(relied), found_with=found)

    @property
    def is_identity(self) -> bool:
        """Whether no unit moves."""
        return self.units_moved == 0

    @property
    def units(self) -> int:
        """The number of units, over all classes and copies."""
        return sum(array.size for array in self.arrays.values())

    @property
    def units_moved(self) -> int:
        """How many units do not stay where they are, over all copies."""
        return sum(int(np.count_nonzero(a != np.arange(a.shape[-1]))) for a in self.arrays.values())

    def inverse(self) -> Permutation:
        """The element that undoes this one."""
        sizes = _sizes(self.classes)
        inverted = {}
        for c in self.classes:
            *copy, _ = coordinates = open_grids([sizes[name] for name in c.within] + [c.size])
            source = self._sources(c.within, copy)
            array = np.empty_like(self.arrays[c.name])
            array[(*source, self.arrays[c.name])] = coordinates[-1]
            inverted[c.name] = array
        return replace(self, arrays=inverted, found_with=replace(self.found_with, states={}))

    def compose(self, other: Permutation) -> Permutation:
        """The element that acts as `other` first and then as this one.

        Args:
            other: an element over the same classes.

        Raises:
            InputError: the classes differ, what they rely on cannot be in one state, or they leave
                other outputs as they are.
        """
        if _signature(self.classes) != _signature(other.classes):
            raise InputError(
                "these permutations belong to different symmetry groups: "
                f"{_difference(self.classes, other.classes)}"
            )
        sizes = _sizes(self.classes)
        composed = {}
        for c in self.classes:
            copy = open_grids([sizes[name] for name in c.within] + [1])[:-1]
            source = self._sources(c.within, copy)
            composed[c.name] = other.arrays[c.name][(*source, self.arrays[c.name])]
        return replace(
            self,
            arrays=composed,
            relies_on=self._relied_on_with(other),
            found_with=self._found_with(other),
        )

    def _found_with(self, other: Permutation) -> FoundWith:
        """What is kept of the choices for this element and one that acts before it."""
        both = self.found_with.after(other.found_with)
        if both is None:
            raise InputError(
                "these permutations leave other outputs as they are: "
                f"{self.found_with} and {other.found_with}. Find both with the same "
                f"{spoken('outputs=', '--outputs')}"
            )
        return both

    def _relied_on_with(self, other: Permutation) -> Relied:
        """What this element and one that acts before it rely on together.

        Elements of one group hold wherever the group does, and `other` meets the state.
        """
        if self.has_group_of(other):
            return other.relies_on
        both = self.relies_on.keys() & other.relies_on.keys()
        differing = sorted(n for n in both if self.relies_on[n] != other.relies_on[n])
        if differing:
            raise InputError(
                "these permutations were found on states with different constants: "
                + ", ".join(differing)
            )
        return {**self.relies_on, **other.relies_on}

    def has_group_of(self, other: Permutation) -> bool:
        """Whether another element permutes the same units at the same places.

        Args:
            other: of the same architecture.
        """
        return _signature(self.classes) == _signature(other.classes) and same_layout(
            self.layout, other.layout
        )

    def permute_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], *, check_constants: bool = True
    ) -> dict[str, torch.Tensor]:
        """Permuted copies of the tensors that the layout names; the others as they are.

        Values are moved bit for bit, whatever the dtype. Device and strides are kept, and so are
        ties: keys that share one tensor share one in the result.

        Constants that the symmetry relies on (index tables, masks, uniform kernels) have to be in
        this state what they were in the one that it was found on. Those that the state does not
        have, as the moments of an optimiser do not, cannot be compared and are passed over: then
        the permutation is as good as the state that these belong to.

        Args:
            state_dict: by name, of the shapes that the layout was made for. It is not changed.
            check_constants: False for tensors that are not the state of a model, such as the
                difference of two states, which has other numbers under the names of constants.

        Returns:
            A new dict with the keys in the same order.

        Raises:
            ArchitectureMismatchError: tensors of the layout are missing or have too small a shape;
                all of them are listed; or its constants differ from those that the symmetry relies
                on.
        """
        self.check_fits(state_dict, check_constants=check_constants)
        copies: dict[tuple[object, ...], tuple[list[IntArray], torch.Tensor]] = {}
        # Of the type that `torch.load` takes with `_metadata` and without running code.
        result: OrderedDict[str, torch.Tensor] = OrderedDict()
        metadata = getattr(state_dict, "_metadata", None)
        if metadata is not None:  # versions of modules, by which they load old layouts
            vars(result)["_metadata"] = metadata
        for name, tensor in state_dict.items():
            if name not in self.layout:
                result[name] = tensor
                continue
            groups = self.layout[name]
            indices = self._indices(groups, tensor)
            key = storage_identity(tensor)
            earlier = copies.get(key)
            if earlier is None or not _all_equal(earlier[0], indices):
                earlier = (indices, permuted(tensor.detach(), groups, indices))
                copies[key] = earlier
            result[name] = earlier[1]
        return result

    def check_fits(
        self, state_dict: Mapping[str, torch.Tensor], *, check_constants: bool = True
    ) -> None:
        """Refuse a state that this does not act on.

        Args:
            state_dict: by name.
            check_constants: see `permute_state_dict`.

        Raises:
            ArchitectureMismatchError: see `permute_state_dict`.
        """
        self._check_state(state_dict)
        constants = {n: whole(state_dict[n]) for n in self.relies_on if n in state_dict}
        faults = contradictions(self.relies_on, constants) if check_constants else []
        if faults:
            raise refusal(faults, "this one's")

    def permute_tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A permuted copy of one state tensor; the tensor itself if the layout does not name it.

        Args:
            name: of the tensor in the state.
            tensor: its value. It is not changed.

        Raises:
            ArchitectureMismatchError: its shape is too small.
        """
        if name not in self.layout:
            return tensor
        faults = misfits(self.layout[name], tensor.shape)
        if faults:
            raise ArchitectureMismatchError(f"{name} {'; '.join(faults)}")
        groups = self.layout[name]
        return permuted(tensor.detach(), groups, self._indices(groups, tensor))

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the permutation to a safetensors file, which appears only when it is complete.

        Args:
            path: of the file.
            overwrite: replace a file that exists.

        Raises:
            CheckpointError: the file exists, or cannot be written.
        """
        certificate.write_permutation(Path(path), self._contents(), overwrite)

    def digest(self) -> str:
        """SHA-256, in hexadecimal digits, of the file that `save` writes."""
        return hashlib.sha256(certificate.payload(self._contents())).hexdigest()

    def _contents(self) -> certificate.Contents:
        return self.classes, dict(self.arrays), self.layout, self.relies_on, self.found_with

    @classmethod
    def load(cls, path: str | Path) -> Permutation:
        """Read what `save` wrote, and check all of it.

        Args:
            path: of the file.

        Raises:
            CheckpointError: the file is missing, damaged, of another format or version, or what
                it holds is not a permutation.
        """
        with certificate.naming(Path(path)):
            return cls(*certificate.read_permutation(Path(path)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        return _signature(self.classes) == _signature(other.classes) and all(
            np.array_equal(array, other.arrays[name]) for name, array in self.arrays.items()
        )

    __hash__ = None  # type: ignore[assignment]  # equality is by value, and arrays have no hash

    def __repr__(self) -> str:
        classes = counted(len(self.classes), "class", "classes")
        return f"Permutation({classes}, {self.units_moved} of {self.units} units moved)"

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("classes", str(len(self.classes))),
            ("moved", f"{self.units_moved} of {counted(self.units, 'unit')}"),
            ("SHA-256", self.digest()),
        ]

    def _indices(self, groups: tuple[AxisGroup, ...], tensor: torch.Tensor) -> list[IntArray]:
        """Where the positions of each group come from."""
        return [gather_index(g, extent(g, tensor.shape), self.arrays) for g in groups]

    def _sources(self, names: tuple[str, ...], copy: Sequence[IntArray]) -> list[IntArray]:
        """Where the coordinates `copy` in the classes `names` come from."""
        at = dict(zip(names, copy, strict=True))
        within = {c.name: c.within for c in self.classes}
        return [self.arrays[n][(*(at[w] for w in within[n]), at[n])] for n in names]

    def _check_state(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Refuse a state that the layout cannot act on, with everything that does not fit."""
        faults = [f"{name}: missing" for name in self.layout if name not in state_dict]
        for name, groups in self.layout.items():
            if name in state_dict:
                faults += [f"{name}: {fault}" for fault in misfits(groups, state_dict[name].shape)]
        architecture = self.found_with.architecture
        if not faults and architecture is not None:
            faults = architecture.misfits(self.layout, state_dict)
        if faults:
            raise ArchitectureMismatchError(
                "the state does not fit the permutation, which was made for another model:\n  "
                + "\n  ".join(faults)
            )

    def check_made_for(self, model: torch.nn.Module) -> None:
        """Refuse a model of another architecture than the one that this was found on.

        Names, shapes, kinds of dtypes, and which tensors are one, have to be the same. A
        permutation of which that is not known, from a file of an older release, passes.

        Args:
            model: that it is to act on.

        Raises:
            ArchitectureMismatchError: with what differs.
        """
        architecture = self.found_with.architecture
        faults = [] if architecture is None else architecture.faults(model)
        if faults:
            raise ArchitectureMismatchError(
                "the permutation was made for another architecture:\n  "
                + listed(faults, _SHOWN, "\n  ")
            )


def _checked_array(
    c: PermutationClass, classes: Sequence[PermutationClass], arrays: Arrays
) -> IntArray:
    """The array of one class as an int64 copy, or the reason why it cannot be one."""
    if c.name not in arrays:
        raise InputError(f"class {c.name!r} has no array")
    array = np.asarray(arrays[c.name])
    sizes = _sizes(classes)
    shape = (*(sizes[name] for name in c.within), c.size)
    if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"class {c.name!r} needs integers of shape {shape}, got {array.dtype} {array.shape}"
        )
    if not np.array_equal(np.sort(array, axis=-1), np.broadcast_to(np.arange(c.size), shape)):
        raise InputError(f"the array of class {c.name!r} is not a permutation of 0 to {c.size - 1}")
    return array.astype(np.int64)


def _all_equal(first: list[IntArray], second: list[IntArray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def _sizes(classes: Sequence[PermutationClass]) -> dict[str, int]:
    return {c.name: c.size for c in classes}


def _signature(classes: Sequence[PermutationClass]) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {c.name: (c.size, c.within) for c in classes}


def _difference(first: Sequence[PermutationClass], second: Sequence[PermutationClass]) -> str:
    """Classes that are not the same in both, in a few words."""
    mine, theirs = _signature(first), _signature(second)
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    differing = [f"{name!r} {mine.get(name)} and {theirs.get(name)}" for name in names]
    return listed(differing, 5, "; ")
