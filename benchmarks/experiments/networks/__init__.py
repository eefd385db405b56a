"""Networks of the experiments; they need torch only, so that a peer can build them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from benchmarks.experiments.networks.gpt import SpeedyLangNet
from benchmarks.experiments.networks.mlp import MLP
from benchmarks.experiments.networks.reduced import REDUCED
from benchmarks.experiments.networks.resnet import SpeedyResNet
from benchmarks.experiments.networks.small import digits_resnet, plain_mlp
from benchmarks.experiments.networks.transformer import Transformer

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "resnet": SpeedyResNet,
    "gpt": SpeedyLangNet,
    "transformer": Transformer,
    "plain_mlp": plain_mlp,
    "digits_resnet": digits_resnet,
    **REDUCED,
}


def build(kind: str, settings: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights.

    Args:
        kind: a key of `NETWORKS`.
        settings: its arguments by name.
    """
    return NETWORKS[kind](**settings)
