"""Values that leave the operators for Python, and tensors that come from there.

What numpy, `.tolist()` or a raw pointer hands out may be used in any way, so all of it is pinned,
and whatever is made of Python's numbers afterwards is data, not a constant. A tensor that no
operator made, in memory of which nothing is known, came by a way that cannot be followed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxrebasin.errors import InputError, TraceError
from fxrebasin.passes.fields.joining import give_up
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.propagate.call_site import CallSite
from fxrebasin.passes.propagate.memory import Memory
from fxrebasin.passes.propagate.tracks import refresh
from fxrebasin.running.messages import describe

FROM_PYTHON = "computed in Python from values that left the operators"


class NeedsDataError(InputError):
    """The model reads data of activations in a way that meta tensors do not refuse."""


class Escapes:
    """Watches what Python reads and what it gives back, in a run of a model.

    Attributes:
        memory: what is known of tensors.
        happened: whether values have left in this run.
        refusal: what was raised inside the model, which may have caught it.
    """

    def __init__(
        self, ledger: Ledger, notes: dict[str, None], site: CallSite, has_data: bool
    ) -> None:
        self.memory = Memory(lambda tensor: self._pin_memory(tensor, "another view of it"))
        self.happened = False
        self.refusal: Exception | None = None
        self._draws = False
        self._ledger, self._notes, self._site = ledger, notes, site
        self._has_data = has_data

    def begin_run(self) -> None:
        """Another run: nothing has left in it, but Python may draw numbers of its own."""
        self.happened = self._draws
        self.refusal = None

    def drawn_in_python(self) -> None:
        """Python's generators were drawn from: from the next run on all its numbers are unknown."""
        self._draws = True
        self._notes.setdefault(
            "the model draws random numbers in Python (random, numpy): tables that are made of "
            "numbers pin what meets them, and what the model does for other draws was not seen"
        )

    def read(self, tensor: Tensor, how: str) -> None:
        """Python reads the data of a tensor, or gets hold of its memory."""
        if how == "reduce_ex":
            self.memory.unmark(tensor)
        if self.memory.find(tensor) is None:
            self.memory.expose(tensor)
        elif self._has_data:
            self._leave(tensor, how)
        else:
            self._need_data(how)

    def note_write(self, tensor: Tensor) -> None:
        """An operator wrote something that depends on data; others may see it, too."""
        if self.memory.is_exposed(tensor):
            if not self._has_data:
                self._need_data("memory that others see")
            self._leave(tensor, "memory that others see")

    def _leave(self, tensor: Tensor, how: str) -> None:
        self._pin_memory(tensor, f"left the operators by {how}")
        self.happened = True
        source = self._ledger.origins[-1].source
        self._notes.setdefault(
            f"values leave the operators by {how}{f' at {source}' if source else ''}: what they "
            "hold is pinned, and so is what is made of them"
        )

    def _pin_memory(self, tensor: Tensor, reason: str) -> None:
        """Give up all freedom of what a memory holds now and later."""
        self._ledger.origins.append(self._site.describe(reason))
        for track in self.memory.sharing(tensor):
            track.value = give_up(self._ledger, refresh(track, self._ledger), reason)
            track.is_state = False
        self.memory.expose(tensor)

    def arrived(self, tensor: Tensor) -> None:
        """A tensor is met that is not a constant and that no operator made."""
        if self.happened:
            self.memory.pin([tensor], FROM_PYTHON)
            return
        if tensor.is_meta and not self._has_data:
            self._need_data("a tensor that no operator made")
        place = self._site.describe("a tensor is met").source or "an unknown line"
        self._refuse(
            TraceError(
                f"a tensor {describe(tensor)} that no operator made is read at {place}: it was "
                "made in another thread, from memory that torch does not own, or in another call "
                "of the model, so that nothing is known of what it was computed from. Compute it "
                "with torch's operators in the thread that runs forward, or keep constants in "
                "buffers of the model."
            )
        )

    def given_by_python(self, func: Any, tensor: Tensor) -> bool:
        """Whether a table was made of numbers that may be unknown; then it is pinned."""
        literal = func is torch.ops.aten.lift_fresh.default
        if not self.happened or not (literal or self.memory.is_exposed(tensor)):
            return False
        self.memory.pin([tensor], FROM_PYTHON)
        return True

    def may_be_in(self, *arguments: Any) -> bool:
        """Whether numbers among the arguments of an operator may come from values that left."""
        return self.happened and _has_number(arguments)

    def _need_data(self, how: str) -> None:
        place = self._site.describe(how).source or "an unknown line"
        self._refuse(
            NeedsDataError(
                f"the model reads values of activations by {how} at {place}, and there are none: "
                "its parameters are on the meta device. Load its weights first."
            )
        )

    def _refuse(self, error: Exception) -> None:
        self.refusal = self.refusal or error
        raise error


def _has_number(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(_has_number(item) for item in value)
    return isinstance(value, int | float | complex) and not isinstance(value, bool)
