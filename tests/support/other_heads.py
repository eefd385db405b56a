"""Models whose heads, vocabularies or first layers differ."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxrebasin


class Classifier(nn.Module):
    """Convolutions with statistics and groups; the head may be missing, or have a hidden layer."""

    def __init__(self, classes: int | None, *, hidden: int = 0, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.wide = nn.Linear(8, 12)
        self.fc: nn.Module = nn.Identity()
        if classes is not None:
            self.fc = nn.Linear(12, classes)
            if hidden:
                norm = nn.BatchNorm1d(hidden)
                last = nn.Linear(hidden, classes)
                self.fc = nn.Sequential(nn.Linear(12, hidden), norm, nn.ReLU(), last)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        return self.fc(F.relu(self.wide((x + F.relu(self.grouped(x))).mean((2, 3)))))


class Language(nn.Module):
    """Token embeddings, a block with heads, and a head that may be the embeddings themselves."""

    def __init__(self, words: int, *, tied: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(words, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, words, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(y.transpose(1, 2).reshape(batch, length, 16)))


IMAGES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(10, (4, 7), generator=torch.Generator().manual_seed(0))
HEAD = ("fc.*",)


def copied(model: nn.Module, reference: nn.Module, inputs: Tensor, seed: int = 1) -> nn.Module:
    """The model with all tensors of the reference that fit, its units in another order."""
    theirs = reference.state_dict()
    own = model.state_dict()
    fitting = {n: theirs[n] for n, t in own.items() if n in theirs and t.shape == theirs[n].shape}
    model.load_state_dict({**own, **fitting})
    planted = fxrebasin.analyze(model, inputs).random(seed)
    model.load_state_dict(planted.permute_state_dict(model.state_dict()))
    return model.eval()


def common(state: Mapping[str, Tensor], *heads: str) -> dict[str, Tensor]:
    """A state without what begins in such a way."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(heads)}


def is_part_of(part: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of a part are those of the whole, bit for bit."""
    return bool(part) and all(torch.equal(tensor, whole[name]) for name, tensor in part.items())


def squared(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """A loss that needs no targets."""
    return outputs.square().mean()
