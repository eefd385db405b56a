"""Two files brought together: what their graphs have in common, and which units go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from onnx import ModelProto
from torch import Tensor

from fxrebasin.choices import Choices, choices_for
from fxrebasin.errors import InputError
from fxrebasin.ignoring import check_patterns, checked_patterns, fits
from fxrebasin.importers.onnx.correspondence import correspondence
from fxrebasin.importers.onnx.finding import Found, find
from fxrebasin.importers.onnx.loading import OnnxSource, Source, read
from fxrebasin.importers.onnx.partner import Correspondence, Partner
from fxrebasin.importers.onnx.tensors import same_bits
from fxrebasin.passes.match.methods import MatchResult, match_states
from fxrebasin.running.outputs import Outputs
from fxrebasin.storage.digests import onnx_digest

_STATISTICS = {"BatchNormalization": (3, 4)}
"""Inputs that are permuted and not compared: running statistics."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A file and its reference.

    Args:
        own: the file.
        other: the reference.
        found: which of their tensors go together.
        ignored: names of tensors of the file that are not compared.
        choices: of the user.
    """

    own: OnnxSource
    other: OnnxSource
    found: Correspondence
    ignored: frozenset[str]
    choices: Choices

    @property
    def tensors(self) -> Mapping[str, Partner]:
        """Tensors of the reference by the names of those of the file."""
        return self.found.tensors

    def find(self, example: Any) -> Found:
        """The symmetry of the file.

        Args:
            example: inputs; made up if left out.
        """
        return find(self.own, example, self.choices, self._equal())

    def _equal(self) -> set[str]:
        """Names of weights that both files have bit for bit."""
        own, other = self.own.parsed.tensors, self.other.parsed.tensors
        return {
            name
            for name in self.own.state
            if name in self.found.alone
            or (
                name in self.tensors
                and name not in self.found.forms
                and same_bits(own[name], self.tensors[name].of(other))
            )
        }

    def _compared(self, name: str) -> Tensor:
        """A tensor of the file, as it is compared."""
        tensors, forms = self.own.parsed.tensors, self.found.forms
        return forms[name].of(tensors) if name in forms else tensors[name]

    def _wanted(self, name: str) -> Tensor:
        """What the reference has for that: what the file has, where it computes what that is."""
        partner = self.tensors.get(name)
        found = self.own if partner is None else self.other
        return found.parsed.tensors[name] if partner is None else partner.of(found.parsed.tensors)

    def match(
        self, found: Found, method: str, seed: int, options: Mapping[str, Any]
    ) -> MatchResult:
        """The permutation of the file's units.

        Args:
            found: of the file.
            method: how units are matched.
            seed: for what is random about it.
            options: of the method.
        """
        names = found.module.file_names
        alone = self.found.alone
        shared = {k: name for k, name in names.items() if name in self.tensors or name in alone}
        kept = set(self.own.state) - _statistics(self.own)
        left_out = self.ignored | self.found.absorbed
        matched = match_states(
            found.symmetry,
            {key: self._compared(name) for key, name in shared.items()},
            {key: self._wanted(name) for key, name in shared.items()},
            method=method,
            seed=seed,
            parameters=[key for key, name in names.items() if name in kept],
            model=found.module,
            ignored=[key for key, name in names.items() if name in left_out],
            **options,
        )
        order = matched.permutation
        made_from = replace(order.found_with, states=self._digests())
        return replace(matched, permutation=order.relying_on(order.relies_on, made_from))

    @property
    def reference(self) -> dict[str, Tensor]:
        """The weights of the reference that have partners, by the names of the file."""
        tensors = self.other.parsed.tensors
        partners = {name: self.tensors[name] for name in self.own.state if name in self.tensors}
        return {name: partner.of(tensors) for name, partner in partners.items()}

    def _digests(self) -> dict[str, str]:
        """What tells the two files' weights from others."""
        return {"model": onnx_digest(self.own.weights), "reference": onnx_digest(self.reference)}


def paired(
    source: Source, ref: Source, outputs: Outputs = None, ignore: Sequence[str] = ()
) -> Pair:
    """Read a file and its reference.

    Args:
        source: the path of a file, or a model in memory.
        ref: the reference.
        outputs: that have to stay as they are; all when left out.
        ignore: names or patterns of tensors that are not compared.

    Raises:
        ArchitectureMismatchError: the graphs differ; the first difference is named.
        InputError: a pattern fits no tensor, or what `read` raises.
        CheckpointError: see `read`.
    """
    if not isinstance(ref, str | PathLike | ModelProto):
        raise InputError(
            f"the reference of an ONNX file is of type {type(ref).__name__}; pass another ONNX "
            "file of the same graph"
        )
    own, other = read(source, "" if _has_path(source) else "the model"), read(ref)
    patterns = checked_patterns(ignore)
    check_patterns(patterns, own.parsed.tensors, other.parsed.tensors)
    ignored = frozenset(name for name in own.parsed.tensors if fits(name, patterns))
    choices = choices_for(own.module(), outputs=outputs)
    found = correspondence(own, other, ignored)
    return Pair(own, other, found, ignored, choices)


def compared_weights(source: Source, ref: Source) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a reference and of a file, by the names that certificates have.

    Args:
        source: the path of a file, or a model in memory.
        ref: the reference.

    Raises:
        ArchitectureMismatchError: see `paired`.
        CheckpointError: see `paired`.
    """
    pair = paired(source, ref)
    keys = {name: key for key, name in pair.own.module().file_names.items()}
    theirs = {keys[name]: tensor for name, tensor in pair.reference.items()}
    return theirs, {keys[name]: tensor for name, tensor in pair.own.weights.items()}


def _has_path(source: Source) -> bool:
    return not isinstance(source, ModelProto)


def _statistics(source: OnnxSource) -> set[str]:
    """Names of tensors that normalisations read as running statistics."""
    return {
        graph.tensors[step.inputs[at]]
        for graph, step in source.parsed.graph.all_steps()
        for at in _STATISTICS.get(step.kind, ())
        if at < len(step.inputs) and step.inputs[at] in graph.tensors
    }
