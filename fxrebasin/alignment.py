"""A permutation of units, elements of larger groups, and the gauges between which they act."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from fxrebasin.acting import acted, refactored
from fxrebasin.choices import FoundWith
from fxrebasin.elements import Elements, after, carried, check_elements, undone
from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.facts import Brief, counted
from fxrebasin.gauge_values import check_marks, difference, equal, same, same_gauge
from fxrebasin.groups import Groups
from fxrebasin.kinds import GroupKind
from fxrebasin.layout import PermutationClass
from fxrebasin.options import check_count
from fxrebasin.permutation import Permutation
from fxrebasin.reliance import Relied
from fxrebasin.storage import alignment_file, certificate
from fxrebasin.storage.alignment_file import AlignmentContents, GaugeValues
from fxrebasin.storage.files import publish

__all__ = [
    "Alignment",
    "Certificate",
    "GaugeValues",
    "applied",
    "applied_exactly",
    "certificate_from",
]


@dataclass(frozen=True, eq=False, repr=False)
class Alignment(Brief):
    """How a model's state is rewritten by the groups beyond permutations; its function stays.

    The state is brought from its own gauge into the canonical one, in which factors of units are
    ones and shifts are zeros; there units are permuted, and then elements of the groups act; the
    result is brought into the target's gauge, which is that of the reference it was aligned with.
    All of it is computed in float64 and rounded once.

    Args:
        permutation: of the units, which comes first.
        groups: of the classes; kinds, and classes that are turned in pairs, are what counts.
        elements: of the groups, by the name of the class; see `fxrebasin.elements`.
        source: the gauge of the state that it acts on.
        target: the gauge of the result.
        ties: other names of tensors, with the name that `groups` has for each.

    Raises:
        InputError: an element has no class, or is not of its group.

    Example:
        >>> import fxrebasin
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> symmetry = fxrebasin.analyze(net, symmetry="signed")
        >>> name = symmetry.classes[0].name
        >>> signs = {name: torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)}
        >>> flipped = Alignment(symmetry.identity(), symmetry.groups, signs)
        >>> state = flipped.apply(net.state_dict())
        >>> bool(torch.equal(state["0.bias"], net[0].bias * torch.tensor([1, -1, 1])))
        True
        >>> flipped.compose(flipped.inverse()).is_identity
        True
    """

    permutation: Permutation
    groups: Groups
    elements: Elements
    source: GaugeValues = field(default_factory=GaugeValues)
    target: GaugeValues = field(default_factory=GaugeValues)
    ties: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        own = self.groups
        needed = Groups(
            {name: replace(kind, spare=()) for name, kind in own.kinds.items()},
            self.permutation.layout,
            own.turned,
            own.turned_layout,
            still=own.still,
            still_layout=own.still_layout,
        )
        object.__setattr__(self, "groups", needed)
        elements = check_elements(self.elements, needed, self.classes)
        object.__setattr__(self, "elements", elements)

    @property
    def classes(self) -> tuple[PermutationClass, ...]:
        """The classes that elements may be of: permuted ones, and those turned in pairs."""
        return (*self.permutation.classes, *self.groups.turned)

    @property
    def kinds(self) -> Mapping[str, GroupKind]:
        """The group of each class, by its name."""
        return {name: own.kind for name, own in self.groups.kinds.items()}

    @property
    def relies_on(self) -> Relied:
        """Constants of the state that it was found on, without which it may not hold."""
        return self.permutation.relies_on

    @property
    def found_with(self) -> FoundWith:
        """The outputs that it leaves as they are, and buffers that it takes for state."""
        return self.permutation.found_with

    @property
    def is_identity(self) -> bool:
        """Whether a state stays as it is, up to its gauge."""
        return self.permutation.is_identity and all(
            same(item, _identity_like(item)) for item in self.elements.values()
        )

    @property
    def units(self) -> int:
        """The number of units, over all classes and copies."""
        return sum(c.size * c.count for c in self.classes)

    @property
    def units_moved(self) -> int:
        """How many units the permutation moves, over all copies."""
        return self.permutation.units_moved

    @property
    def at_most_signed(self) -> bool:
        """Whether no number but its sign changes: what it makes is exact to the bit."""
        return not (self.source.added or self.target.added or self.source.factors) and all(
            item.dim() == 2 and bool((item.abs() == 1).all()) for item in self.elements.values()
        )

    def condition(self) -> float:
        """The largest condition number of all elements that are matrices; 1.0 without such."""
        found = [1.0]
        found += [float(torch.linalg.cond(m).max()) for m in self.elements.values() if m.dim() == 3]
        return max(found)

    def apply(
        self, state_dict: Mapping[str, Tensor], *, check_constants: bool = True
    ) -> dict[str, Tensor]:
        """The rewritten state; tensors that nothing acts on are permuted bit for bit.

        Args:
            state_dict: by name; it is not changed. If biases are moved through weights, it has to
                be the state that the alignment was found on, in whatever precision.
            check_constants: see `Permutation.permute_state_dict`.

        Returns:
            A new dict with the keys, dtypes and strides of the old one, in its order.

        Raises:
            ArchitectureMismatchError: see `Permutation.permute_state_dict`.
            InputError: the state is another one than the alignment was found on.
        """
        permuted = self.permutation.permute_state_dict(state_dict, check_constants=check_constants)
        result = permuted.copy()  # with what it knows of versions of modules
        changed = self.in_float64(state_dict)
        for name, tensor in permuted.items():
            wanted = changed.get(self.ties.get(name, name))
            if wanted is None or torch.equal(wanted, tensor.to(torch.float64)):
                continue
            first = self.ties.get(name, name)
            if first != name and first in result and result[first].dtype == tensor.dtype:
                result[name] = result[first]
            else:
                result[name] = torch.empty_like(tensor).copy_(wanted)
        return result

    def apply_to_moments(
        self, moments: Mapping[str, Tensor], *, power: int = 1
    ) -> dict[str, Tensor]:
        """Means of powers of gradients, as optimisers keep them, for the rewritten parameters.

        Under permutations and signs each gradient goes with its parameter, and odd powers change
        their sign with it. Matrices and scales mix gradients in another way than parameters, and
        squares not at all as squares: what an optimiser knows is lost then.

        Args:
            moments: by the names of parameters, of their shapes; some may be missing.
            power: 1 for means of gradients (`exp_avg`), 2 for means of squares (`exp_avg_sq`).

        Returns:
            A new dict with the keys and dtypes of the old one, exact to the bit.

        Raises:
            InputError: more than permutations and signs act, or the power is not positive.
            ArchitectureMismatchError: a tensor has another shape than its parameter.

        Example:
            >>> import fxrebasin, torch
            >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(),
            ...                             torch.nn.Linear(5, 3)) for _ in "ab")
            >>> found = fxrebasin.match(b, ref=a, symmetry="signed")
            >>> moved = found.apply_to_moments({name: p * 0.1 for name, p in b.named_parameters()})
        """
        check_count("power", power)
        if not self.at_most_signed:
            acting = ", ".join(sorted({self.kinds[name].value for name in self.elements}))
            raise InputError(
                "the moments of an optimiser can be permuted and change their signs, but more acts "
                f"here ({acting or 'what norms and biases leave open'}). Start the optimiser anew, "
                "or align with symmetry='signed'"
            )
        within = {n: g for n, g in self.permutation.layout.items() if n in moments}
        there = replace(self.permutation, layout=within)
        if power % 2 == 0:
            return there.permute_state_dict(moments, check_constants=False)
        kinds = {
            name: replace(own, signs={p: odd for p, odd in own.signs.items() if p.state in moments})
            for name, own in self.groups.kinds.items()
        }
        groups = replace(self.groups, kinds=kinds)
        return replace(self, permutation=there, groups=groups).apply(moments, check_constants=False)

    def in_float64(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that something acts on, rewritten in float64 and not rounded.

        Args:
            state_dict: by name; it is not changed.

        Raises:
            ArchitectureMismatchError: tensors are missing.
            InputError: the state is another one than the alignment was found on.
        """
        held = {self.ties.get(name, name): tensor for name, tensor in state_dict.items()}
        names = self._touched()
        state = {n: held[n].detach().to(torch.float64) for n in sorted(names) if n in held}
        if self.source.added or self.target.added:
            check_marks(self.source, held)
        for name, item in self.source.added.items():
            state[name] = state[name] + item
        state = refactored(state, self.groups, self.permutation.classes, {})
        within = {n: g for n, g in self.permutation.layout.items() if n in state}
        state = replace(self.permutation, layout=within).permute_state_dict(
            state, check_constants=False
        )
        state = acted(state, self.groups, self.classes, self.elements)
        state = refactored(state, self.groups, self.permutation.classes, self.target.factors)
        for name, item in self.target.added.items():
            state[name] = state[name] - item
        return state

    def inverse(self) -> Alignment:
        """The one that undoes this one, and brings the state back into its own gauge.

        Factors that were zero there are ones in what it makes.
        """
        back = self.permutation.inverse()
        return replace(
            self,
            permutation=back,
            elements=carried(undone(self.elements), back, self.classes),
            source=self.target,
            target=self.source,
        )

    def compose(self, other: Alignment) -> Alignment:
        """The one that acts as `other` first and then as this one.

        Args:
            other: over the same classes, whose result is in the gauge that this one starts from.

        Raises:
            InputError: classes, kinds or gauges differ.
        """
        permutation = self.permutation.compose(other.permutation)
        kinds = {name for name in self.kinds if self.kinds[name] != other.kinds.get(name)}
        if kinds:
            raise InputError(
                f"these alignments have other groups for the classes {', '.join(sorted(kinds))}"
            )
        unlike = difference(self.source, other.target)
        if unlike:
            raise InputError(
                "these alignments do not follow each other: the first one ends in another gauge "
                f"than the second one starts from. {unlike}"
            )
        moved = carried(other.elements, self.permutation, self.classes)
        return replace(
            self,
            permutation=permutation,
            elements=after(self.elements, moved),
            source=other.source,
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the alignment to a safetensors file, which appears only when it is complete.

        Args:
            path: of the file.
            overwrite: replace a file that exists.

        Raises:
            CheckpointError: the file exists, or cannot be written.
        """
        try:
            publish(Path(path), alignment_file.payload(self._contents()), overwrite=overwrite)
        except InputError as error:
            raise CheckpointError(str(error)) from error

    @classmethod
    def load(cls, path: str | Path) -> Alignment:
        """Read what `save` wrote, and check all of it.

        Args:
            path: of the file.

        Raises:
            CheckpointError: the file is missing, damaged, of another format or version, or what
                it holds is not an alignment.
        """
        with certificate.naming(Path(path), "alignment"):
            found = alignment_file.read(Path(path))
            return cls(
                Permutation(*found.permutation),
                found.groups,
                found.elements,
                found.source,
                found.target,
                found.ties,
            )

    def digest(self) -> str:
        """SHA-256, in hexadecimal digits, of the file that `save` writes."""
        return hashlib.sha256(alignment_file.payload(self._contents())).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Alignment):
            return NotImplemented
        return (
            self.permutation == other.permutation
            and self.groups.kinds == other.groups.kinds
            and equal(self.elements, other.elements)
            and same_gauge(self.source, other.source)
            and same_gauge(self.target, other.target)
        )

    __hash__ = None  # type: ignore[assignment]  # equality is by value, and tensors have no hash

    def __repr__(self) -> str:
        kinds = dict.fromkeys(self.kinds[name].value for name in self.elements)
        acting = f"; {', '.join(kinds)}" if kinds else ""
        classes = counted(len(self.classes), "class", "classes")
        return f"Alignment({classes}, {self.units_moved} of {self.units} units moved{acting})"

    def groups_text(self) -> str:
        """How many classes have which group, in words."""
        count: dict[str, int] = {}
        for c in self.classes:
            kind = self.kinds.get(c.name, GroupKind.PERMUTATION).value
            count[kind] = count.get(kind, 0) + 1
        return ", ".join(f"{number} {kind}" for kind, number in count.items())

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("classes", str(len(self.classes))),
            ("groups", self.groups_text()),
            ("moved", f"{self.units_moved} of {counted(self.units, 'unit')}"),
            ("condition", f"{self.condition():.4g}"),
            ("SHA-256", self.digest()),
        ]

    def _contents(self) -> AlignmentContents:
        return AlignmentContents(
            self.permutation._contents(),
            self.groups,
            self.elements,
            self.source,
            self.target,
            self.ties,
        )

    def _touched(self) -> set[str]:
        """Names of all tensors that something but the permutation may change."""
        found = {*self.source.added, *self.target.added}
        for c in (*self.classes, *self.groups.still):
            own = self.groups.kinds.get(c.name)
            if own is None:
                continue
            if c.name in self.elements:
                found |= {place.state for place in (*own.parts, *own.scales, *own.signs)}
                found |= {p.state for part in own.parts.values() for p in part.factors}
            found |= {place.state for factor in own.factors for place in factor}
        return found


Certificate: TypeAlias = Permutation | Alignment
"""What may be applied to a state: its function stays."""


def certificate_from(path: str | Path) -> Certificate:
    """Read a permutation or an alignment, whichever a file holds.

    Args:
        path: of the file.

    Raises:
        CheckpointError: see `Permutation.load`.
    """
    with certificate.naming(Path(path)):
        kind = certificate.format_of(Path(path))
    return Alignment.load(path) if kind == alignment_file.FORMAT else Permutation.load(path)


def applied(
    found: Certificate, state: Mapping[str, Tensor], *, check_constants: bool = True
) -> dict[str, Tensor]:
    """A state, rewritten.

    Args:
        found: a permutation or an alignment.
        state: by name; it is not changed.
        check_constants: see `Permutation.permute_state_dict`.

    Raises:
        ArchitectureMismatchError: see `Permutation.permute_state_dict`.
        InputError: see `Alignment.apply`.
    """
    if isinstance(found, Permutation):
        return found.permute_state_dict(state, check_constants=check_constants)
    return found.apply(state, check_constants=check_constants)


def applied_exactly(found: Certificate, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state, rewritten, with what is computed not rounded but left in float64.

    Args:
        found: a permutation or an alignment.
        state: by name; it is not changed.

    Raises:
        ArchitectureMismatchError: see `Permutation.permute_state_dict`.
        InputError: see `Alignment.apply`.
    """
    if isinstance(found, Permutation):
        return found.permute_state_dict(state)
    permuted = found.permutation.permute_state_dict(state)
    wide = found.in_float64(state)
    first = {name: found.ties.get(name, name) for name in permuted}
    return permuted | {name: wide[own] for name, own in first.items() if own in wide}


def _identity_like(item: Tensor) -> Tensor:
    if item.dim() == 2:
        return torch.ones_like(item)
    return torch.eye(item.shape[-1], dtype=item.dtype).expand_as(item)
