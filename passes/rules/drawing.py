"""Random numbers: each is what it is by its position and by the state of a generator.

Where a model draws in eval mode too (dropout at test time, noise), it is the same function for the
same state of the generator only if what meets these numbers stays where it is. That numbers drawn
once are alike, as those of a mask are, does not say that they are the next time.
"""

from __future__ import annotations

import torch

from fxrebasin.passes.rules.registry import block

RANDOM = "random numbers"

block(
    RANDOM,
    *("rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_", "multinomial"),
    *("poisson", "binomial", "_standard_gamma", "_sample_dirichlet", "normal", "normal_"),
    *("uniform", "uniform_", "exponential", "exponential_", "cauchy", "cauchy_", "geometric"),
    *("geometric_", "log_normal", "log_normal_", "random", "random_"),
)


def draws(op: torch._ops.OpOverload) -> bool:
    """Whether an operator makes random numbers, or may do so when it is told to.

    What it makes is no constant then, also where all of its operands are.

    Args:
        op: any operator.

    Example:
        >>> draws(torch.ops.aten.rand.default), draws(torch.ops.aten.relu.default)
        (True, False)
    """
    return torch.Tag.nondeterministic_seeded in op.tags
