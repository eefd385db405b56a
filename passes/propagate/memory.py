"""What is known of tensors, by the memory that they look at.

A tensor object can lose what a model knows of it: `nn.Parameter(h)`, `z.data = h` and
`h.as_subclass(...)` make other objects of the same memory without any operator. So what is known
belongs to memory: a storage and a place in it. Constants are known by their memory as well, and by
how often it was written to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fxrebasin.passes.fields.fields import Labels, Value, pinned_value, positions
from fxrebasin.passes.fields.labels import rigid_labels
from fxrebasin.passes.propagate.tracks import Replay, Track
from fxrebasin.uniformity import bits_of, has_bits, varying_axes_of

_ViewKey: TypeAlias = tuple[Any, ...]

_NOTE = "_fxrebasin_track"
_VIEW_OF = "_fxrebasin_view_of"
_LOOKED_AT = "_fxrebasin_constant"

_COMPARED_AT_MOST = 1 << 20
"""The largest constant, in elements, in which equal slices are looked for."""

_runs = count()


@dataclass(eq=False)
class _Note:
    """On a tensor object: what is known of it, while it looks at the same memory in the same run.

    A copy of the object holds an empty note, and is looked up by its memory.
    """

    run: int = -1
    address: int = 0
    track: Track | None = None

    def __reduce__(self) -> tuple[type[_Note], tuple[()]]:
        return _Note, ()


class Memory:
    """Tracks and constants of one run, by storage.

    Storages are held weakly: their addresses stay theirs, their data need not stay alive.
    """

    def __init__(self, other_view: Callable[[Tensor], None]) -> None:
        """Start with nothing known.

        Args:
            other_view: called for a tensor that shares the memory of a tracked one without being a
                view that was seen, before that memory counts as pinned.
        """
        self._run = next(_runs)
        self._other_view = other_view
        self._tracks: dict[int, dict[_ViewKey, Track]] = {}
        self._constants: set[int] = set()
        self._writes: Counter[int] = Counter()
        self._exposed: set[int] = set()
        self._kept: dict[int, StorageWeakRef] = {}

    # Tracks -----------------------------------------------------------------------------------

    def find(self, tensor: Tensor) -> Track | None:
        """What is known of a tensor; None for a constant."""
        note: _Note | None = getattr(tensor, _NOTE, None)
        address = address_of(tensor)
        if note is not None and note.run == self._run and note.address == address:
            return note.track
        made = _view_of(tensor)
        if made is not None:
            base = self.find(made[0])
            if base is not None:
                track = Track(Value(tuple(tensor.shape)), base=base, replay=made[1], seen=-1)
                self.set(tensor, track)
                return track
        known = self._tracks.get(address) if address else None
        return None if known is None else self._by_place(tensor, known)

    def _by_place(self, tensor: Tensor, known: dict[_ViewKey, Track]) -> Track:
        """What is known of memory, for an object that no operator made."""
        found = known.get(view_key(tensor))
        if found is None:
            self._other_view(tensor)
            found = Track(pinned_value(tensor.shape, "another view of memory that is tracked"))
            known[view_key(tensor)] = found
        return found

    def set(self, tensor: Tensor, track: Track) -> None:
        """Attach what is known to a tensor object and its memory."""
        address = address_of(tensor)
        setattr(tensor, _NOTE, _Note(self._run, address, track))
        self._place_at(address, tensor, track)

    def pin(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Tensors whose numbers are others in another run: tables of unknown or random numbers."""
        for tensor in tensors:
            self.set(tensor, Track(pinned_value(tensor.shape, reason)))

    def alias(self, tensor: Tensor, track: Track) -> None:
        """Attach what is known to the memory of a tensor, and leave the object as it is."""
        self._place_at(address_of(tensor), tensor, track)

    def _place_at(self, address: int, tensor: Tensor, track: Track) -> None:
        if address:
            self._keep(tensor, address)
            self._tracks.setdefault(address, {})[view_key(tensor)] = track

    def moved(self, tensor: Tensor, track: Track) -> None:
        """A tensor was written to, and may look at its memory in a different way than before."""
        known = self._tracks.get(address_of(tensor), {})
        if known.get(view_key(tensor)) is not track:
            for key in [key for key, item in known.items() if item is track]:
                del known[key]
            self.set(tensor, track)

    def begin(self, tensor: Tensor) -> Track:
        """Start to follow a constant that is going to be written to, and what it is a view of."""
        found = self.find(tensor)
        if found is None:
            made = _view_of(tensor)
            if made is None:
                found = Track(self.constant_value(tensor))
            else:
                value, base = self.constant_value(tensor), self.begin(made[0])
                found = Track(value, base=base, replay=made[1], seen=base.root.version)
            self.set(tensor, found)
        return found

    def sharing(self, tensor: Tensor) -> list[Track]:
        """All that is known of the memory of a tensor."""
        found = list(self._tracks.get(address_of(tensor), {}).values())
        return list({id(track): track for track in found}.values())

    def alive(self) -> list[Track]:
        """All that is known of memory that something still holds."""
        found = [
            track
            for address, weak in self._kept.items()
            if not weak.expired()
            for track in self._tracks.get(address, {}).values()
        ]
        return list({id(track): track for track in found}.values())

    def mark_view(self, tensor: Tensor, base: Tensor, replay: Replay) -> None:
        """Remember that one constant is a view of another."""
        if tensor is not base:
            setattr(tensor, _VIEW_OF, (base, replay))

    def unmark(self, tensor: Tensor) -> None:
        """Take notes off a tensor object that is going to be stored; its memory is still known."""
        for name in (_NOTE, _VIEW_OF, _LOOKED_AT):
            vars(tensor).pop(name, None)

    # Exposure ---------------------------------------------------------------------------------

    def expose(self, tensor: Tensor) -> None:
        """From now on something other than operators may read and write this memory."""
        address = address_of(tensor)
        if address:
            self._keep(tensor, address)
            self._exposed.add(address)

    def is_exposed(self, tensor: Tensor) -> bool:
        """Whether something other than operators may read and write the memory of a tensor."""
        address = address_of(tensor)
        return address in self._exposed or (address != 0 and _belongs_to_others(tensor))

    # Constants --------------------------------------------------------------------------------

    def add_constants(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that depend on no parameter and no input."""
        for tensor in tensors:
            address = address_of(tensor)
            if address and address not in self._constants:
                self._keep(tensor, address)
                self._constants.add(address)

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is known to be a constant; one without a storage counts as such."""
        address = address_of(tensor)
        return not address or address in self._constants

    def note_write(self, tensor: Tensor) -> None:
        """An operator wrote to a constant, through whatever view of it."""
        self._writes[address_of(tensor)] += 1

    def constant_value(self, tensor: Tensor) -> Value:
        """A constant pins the axes along which it is not uniform."""
        if tensor.numel() <= 1:
            return Value(tuple(tensor.shape))
        if not has_bits(tensor):
            return pinned_value(tensor.shape, "constant")
        if self.is_exposed(tensor):
            return _looked_at(tensor)
        address = address_of(tensor)
        version = 0 if tensor.is_inference() else tensor._version
        stamp = (self._run, self._writes[address], version, address, *view_key(tensor))
        known: tuple[_ViewKey, Value] | None = getattr(tensor, _LOOKED_AT, None)
        if known is None or known[0] != stamp:
            known = (stamp, _looked_at(tensor))
            setattr(tensor, _LOOKED_AT, known)
        return known[1]

    def _keep(self, tensor: Tensor, address: int) -> None:
        if address not in self._kept:
            with torch._C.DisableTorchFunction():
                self._kept[address] = StorageWeakRef(tensor.untyped_storage())


def _view_of(tensor: Tensor) -> tuple[Tensor, Replay] | None:
    """What a constant was made a view of, while that looks at the same memory in the same way."""
    made: tuple[Tensor, Replay] | None = getattr(tensor, _VIEW_OF, None)
    if made is None or address_of(made[0]) != address_of(tensor):
        return None
    form = made[1].form
    alike = made[0].shape == form.shape and made[0].stride() == form.stride()
    return made if alike else None


def address_of(tensor: Tensor) -> int:
    """The address of a tensor's storage; 0 if it has none of its own.

    Unlike `untyped_storage`, it bypasses the modes that watch what a model does.
    """
    try:
        found: int = torch._C._storage_address(tensor)  # type: ignore[attr-defined]
    except (NotImplementedError, RuntimeError):
        return 0
    return found


def view_key(tensor: Tensor) -> _ViewKey:
    """Equal for tensors that look at one storage in the same way."""
    return (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _belongs_to_others(tensor: Tensor) -> bool:
    """Whether memory was lent to torch, by numpy for instance, whose owner may write to it."""
    with torch._C.DisableTorchFunction():
        return not tensor.is_meta and not tensor.untyped_storage().resizable()


def _looked_at(tensor: Tensor) -> Value:
    """What the bits of a constant say: along which axes they vary, and which slices are equal."""
    bits = bits_of(tensor)
    varying = [axis for axis in varying_axes_of(tensor) if tensor.stride(axis) != 0]
    for axis, size in enumerate(tensor.shape):
        if size > 1 and axis not in varying:
            bits = bits.narrow(axis, 0, 1)
    return Value(tuple(tensor.shape), tuple(_slices(tensor, bits, axis) for axis in varying))


def _slices(tensor: Tensor, bits: Tensor, axis: int) -> Labels:
    """A rigid label for each slice along an axis, the same for equal ones."""
    every = positions(tensor.ndim, axis, tensor.shape[axis], "constant")
    if bits.numel() > _COMPARED_AT_MOST:
        return every
    numbers: dict[bytes, int] = {}
    with torch._C.DisableTorchFunction():  # the analysis itself looks here, at a copy
        rows = bits.movedim(axis, 0).reshape(tensor.shape[axis], -1).cpu().clone().numpy()
    found = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]
    if len(numbers) == len(found):
        return every
    values = rigid_labels(torch.tensor(found)).view(every.values.shape)
    return replace(every, values=values, injective=False)
