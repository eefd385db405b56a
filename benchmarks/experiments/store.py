"""Trained networks, kept in files, so that no experiment trains what another one has trained."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.experiments.data.source import Source, fingerprint
from benchmarks.experiments.training import Subject, fresh, steps_of_epoch, train
from fxrebasin.storage.files import publish
from fxrebasin.terminal import progress_bar


@dataclass(frozen=True)
class Store:
    """A folder of trained networks, each under a key of all that decides its weights.

    Args:
        folder: made if it does not exist.
    """

    folder: Path

    def trained(self, subject: Subject, source: Source, seed: int) -> nn.Module:
        """A network, from its file if there is one, or trained now; in eval mode.

        Args:
            subject: what is trained, and how.
            source: of the data.
            seed: of the weights and the order of the data.
        """
        path = self.folder / f"{subject.kind}-{_key(subject, source, seed)}.pt"
        model = fresh(subject, source, seed)
        if path.is_file():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        steps = subject.training.epochs * steps_of_epoch(source, subject.training)
        with progress_bar() as progress:
            task = progress.add_task(f"train {subject.kind}, seed {seed}", total=steps)
            model = train(model, source, subject.training, seed, partial(progress.advance, task))
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        publish(path, buffer.getvalue(), overwrite=True)
        return model


def _key(subject: Subject, source: Source, seed: int) -> str:
    decided_by = {**asdict(subject), "seed": seed, "torch": torch.__version__}
    text = json.dumps(decided_by, sort_keys=True, default=str) + fingerprint(source)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
