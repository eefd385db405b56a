"""Reports of commands: as one JSON document, and as the card of a model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import click
import torch

import fxrebasin
from fxrebasin.alignment import Certificate
from fxrebasin.cli.options import ARGUMENTS
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.storage.reading import Checkpoint

_LIBRARIES = ("transformers", "diffusers", "timm", "torchvision")


def command_line() -> str:
    """The command as it was written."""
    written = click.get_current_context().meta.get(ARGUMENTS, ())
    return shlex.join(["fxrebasin", *written])


def versions() -> dict[str, str]:
    """Of what decides about the result: libraries that models come from where they are used."""
    found = {"fxrebasin": fxrebasin.__version__, "torch": str(torch.__version__)}
    return found | {name: version(name) for name in _LIBRARIES if name in sys.modules}


def command_document(command: str) -> dict[str, Any]:
    """What every document begins with.

    Args:
        command: its name.
    """
    return {"command": command, "versions": versions()}


def matching_document(report: RebasinReport) -> dict[str, Any]:
    """What matching found, for programs.

    Args:
        report: of a match.
    """
    equivalence = report.equivalence
    return {
        "method": report.method,
        "distance_before": report.distance_before,
        "distance_after": report.distance_after,
        "objective_before": report.objective_before,
        "objective_after": report.objective_after,
        "sweeps": report.sweeps,
        "log10_order": report.log10_order,
        "unknown_operators": list(report.unknown_operators),
        **({} if report.groups is None else {"groups": report.groups}),
        "equivalence": None if equivalence is None else equivalence.to_dict(),
        "seconds": dict(report.seconds),
        "notes": list(report.notes),
        **permutation_document(report.certificate),
    }


def permutation_document(permutation: Certificate) -> dict[str, Any]:
    """A permutation in a few figures.

    Args:
        permutation: that was found or applied.
    """
    return {
        "classes": len(permutation.classes),
        "units": permutation.units,
        "units_moved": permutation.units_moved,
        "certificate_sha256": permutation.digest(),
    }


def checkpoint_document(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was read, and how, for programs.

    Args:
        checkpoint: that was read.
    """
    return {
        "path": str(checkpoint.path),
        "kind": checkpoint.kind.value,
        "notes": list(checkpoint.notes),
        "left_out": list(checkpoint.left_out),
        "extra": list(checkpoint.extra),
    }


def card(title: str, facts: Sequence[tuple[str, str]], tags: Sequence[str] = ()) -> str:
    """What was done, as the README.md of a folder: models, method, versions, digest, command.

    Args:
        title: of the page.
        facts: a line each.
        tags: beside that of the package.
    """
    lines = ["---", "tags:", *(f"- {tag}" for tag in ("fxrebasin", *tags)), "---"]
    lines += [f"# {title}", "", *(f"- {name}: {text}" for name, text in facts)]
    lines += [f"- {name}: {version}" for name, version in versions().items()]
    lines += ["", "```sh", command_line(), "```", ""]
    # Names of files may be no text in any encoding.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


def digest_facts(path: object, permutation: Certificate | None) -> list[tuple[str, str]]:
    """The line of a card that says which permutation was applied.

    Args:
        path: of the checkpoint.
        permutation: of its units; None for none.
    """
    if permutation is None:
        return []
    return [(f"certificate of {path} (SHA-256)", permutation.digest())]
