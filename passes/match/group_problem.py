"""What a method is given, and returns, that matches over the groups of a symmetry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from fxrebasin.acting import acted
from fxrebasin.counted import counted_state
from fxrebasin.elements import after, carried, undone
from fxrebasin.groups import Groups
from fxrebasin.layout import PermutationClass, names_in
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.permutation import Permutation


@dataclass(frozen=True, eq=False)
class Element:
    """An element of all groups of a model at once: units are permuted, then elements act.

    Attributes:
        permutation: of the classes that may be permuted.
        elements: float64 by the name of the class, of shape (copies, units, units) where matrices
            act, else numbers of shape (copies, units); none for a class that is only permuted.
    """

    permutation: Permutation
    elements: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class GroupProblem:
    """Two models in the canonical gauge, between which an element of the groups is sought.

    Both states have ones for the factors of norms and zeros for the shifts that others take back
    (`fxrebasin.passes.kinds.regauge`), so that elements act on every tensor as they stand there.
    They are complete: `plain.model` runs with them in place of its own parameters and buffers, and
    computes what the model and the reference do.

    A method is a function of a `GroupProblem`, with its options as keywords, that returns a
    `GroupResult`; it is registered in `fxrebasin.passes.match.group_methods`. What a method needs:

    * `moved(element)` is the model's state after an element, differentiable in `elements`;
    * `identity()`, `combined(second, first)` and `inverse(element)` calculate with elements;
    * `groups.kinds[name]` says what may act on a class: `kind`, `partner` for complex pairs,
      `parts` (places with their variance), `scales` and `signs` (places with exponents);
    * `plain` is the problem with both models as they were given: what to run, the names of the
      tensors that are compared, the seed, and the classes that may move.

    Attributes:
        plain: the model and the reference as they are, with permutation classes only.
        classes: of the symmetry, with those that are turned in pairs.
        groups: that act on their units.
        state_b: of the model to align, canonical: float64 by name, tied tensors once.
        state_a: of the reference, canonical.
        ties: other names of tensors of the model, with the name that the states have for each.
    """

    plain: MatchingProblem
    classes: tuple[PermutationClass, ...]
    groups: Groups
    state_b: Mapping[str, Tensor]
    state_a: Mapping[str, Tensor]
    ties: Mapping[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The same seed gives the same result."""
        return self.plain.seed

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of the tensors of both states that are compared; complex ones hold no units."""
        names = dict.fromkeys(self.ties.get(name, name) for name in self.plain.compared)
        states = (self.state_a, self.state_b)
        return tuple(n for n in names if all(n in s and not s[n].is_complex() for s in states))

    def counted(self) -> GroupProblem:
        """The same, with zeros for what does not count when models are compared."""
        layout = self.plain.symmetry.layout
        b, a = (counted_state(state, layout) for state in (self.state_b, self.state_a))
        return replace(self, state_b=b, state_a=a)

    @cached_property
    def tensors(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the tensors that hold units of a class, by its name."""
        found: dict[str, dict[str, None]] = {c.name: {} for c in self.classes}
        for layout in (self.plain.symmetry.layout, self.groups.turned_layout):
            for name in (name for name in layout if name in self.state_b):
                for c in names_in(layout, [name]):
                    found[c][name] = None
        return {c: tuple(names) for c, names in found.items()}

    def touched(self, state: Mapping[str, Tensor], classes: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of a state that some classes are on.

        Args:
            state: by name.
            classes: their names.
        """
        names = dict.fromkeys(name for c in classes for name in self.tensors[c])
        return {name: state[name] for name in names}

    def free(self, c: PermutationClass) -> bool:
        """Whether a class may move: it, or for units that turn in pairs the one they are within.

        Args:
            c: the class.
        """
        names = c.within if c.name in {turned.name for turned in self.groups.turned} else (c.name,)
        return all(name in self.plain.free for name in names)

    def identity(self) -> Element:
        """The element that leaves all as it is."""
        symmetry = self.plain.symmetry
        return Element(Permutation.identity(symmetry.classes, symmetry.layout))

    def moved(
        self, element: Element, state: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """A state after an element acted on it.

        Args:
            element: to act.
            state: canonical; that of the model when left out.
        """
        state = self.state_b if state is None else state
        permutation = element.permutation
        within = {name: own for name, own in permutation.layout.items() if name in state}
        permutation = replace(permutation, layout=within)
        permuted = permutation.permute_state_dict(state, check_constants=False)
        return acted(permuted, self.groups, self.classes, element.elements)

    def combined(self, second: Element, first: Element) -> Element:
        """The element that acts as `first` and then as `second`.

        Args:
            second: acts last.
            first: acts before.
        """
        moved = carried(first.elements, second.permutation, self.classes)
        return Element(second.permutation.compose(first.permutation), after(second.elements, moved))

    def inverse(self, element: Element) -> Element:
        """The element that undoes another one.

        Args:
            element: to be undone.
        """
        back = element.permutation.inverse()
        return Element(back, carried(undone(element.elements), back, self.classes))


@dataclass(frozen=True, eq=False)
class GroupResult:
    """What a method over groups returns.

    Attributes:
        element: brings the canonical state of the model towards that of the reference.
        sweeps: of the solver: sweeps over the classes, steps or epochs.
        notes: what a user should know, in words.
    """

    element: Element
    sweeps: int
    notes: tuple[str, ...] = ()
