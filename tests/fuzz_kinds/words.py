"""What random networks are made of, and how one is drawn."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

F = TypeVar("F", bound="Form")


@dataclass(frozen=True)
class Form:
    """A network; its fields are what was chosen."""

    @abstractmethod
    def build(self) -> Any:
        """The network, in double precision and eval mode, with a `batch` of inputs for it."""

    def text(self) -> str:
        """Only what differs from the plain one, as a call that makes it again."""
        plain = asdict(type(self)())
        chosen = {key: value for key, value in asdict(self).items() if value != plain[key]}
        inner = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
        return f"{type(self).__name__}({inner})"


def draw(plain: type[F], choices: Mapping[str, Sequence[Any]], seed: int, index: int) -> F:
    """A random network: each field is left as it is half of the time.

    Args:
        plain: its type.
        choices: by the name of the field.
        seed: of all.
        index: of this one.
    """
    chance = random.Random(f"{seed}.{index}.{plain.__name__}")
    own = {item.name for item in fields(plain)}
    assert own >= set(choices)
    busy = chance.choice([0.15, 0.35, 0.6])
    chosen = {
        name: chance.choice(list(options))
        for name, options in choices.items()
        if chance.random() < busy
    }
    return plain(**chosen)
