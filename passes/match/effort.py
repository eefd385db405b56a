"""How long a method may search: a number of restarts, a budget of time, or both."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from fxrebasin.options import check_count, check_positive


@dataclass(frozen=True)
class Effort:
    """When to stop adding searches from random starts.

    Args:
        restarts: most random starts; None for as many as there is time for.
        deadline: on the clock of `time.perf_counter`; infinite if there is none.
    """

    restarts: int | None
    deadline: float

    @classmethod
    def given(cls, restarts: int | None, budget: float | None, began: float) -> Effort:
        """From the options of a method.

        Args:
            restarts: number of random starts. When left out there are none, or with a budget as
                many as there is time for.
            budget: seconds.
            began: when matching began, on the clock of `time.perf_counter`.

        Raises:
            InputError: one of them cannot be used.

        Example:
            >>> Effort.given(None, None, began=0.0)
            Effort(restarts=0, deadline=inf)
        """
        if restarts is not None:
            check_count("restarts", restarts, 0)
        if budget is None:
            return cls(restarts or 0, math.inf)
        check_positive("budget", budget)
        return cls(restarts, began + budget)

    def is_spent(self, restarts: int) -> bool:
        """Whether no further random start is to be made.

        Args:
            restarts: number of those that were made.
        """
        return restarts == self.restarts or time.perf_counter() >= self.deadline
