"""The error family: every refusal of the package is an `FxRebasinError`; and what it warns with."""

from __future__ import annotations

from fxrebasin.wording import presentable


class FxRebasinError(Exception):
    """Base of all errors raised on purpose by fxrebasin.

    Messages are safe to be shown: they may hold names from files of strangers. Control characters
    are escaped, and long lines and long messages are cut.

    Example:
        >>> print(FxRebasinError("w" + chr(27) + "[2J is missing"))
        w\\x1b[2J is missing
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(presentable(str(message)))


class InputError(FxRebasinError, ValueError):
    """The model, its example inputs or an option cannot be used."""


class TraceError(FxRebasinError):
    """No tracer could turn the model into a graph, or the model did not run."""


class ArchitectureMismatchError(FxRebasinError, ValueError):
    """Model and reference do not have the same parameters, buffers or graph."""


class CheckpointError(FxRebasinError, ValueError):
    """A file of weights, a certificate or an ONNX file cannot be read or written."""


class EquivalenceError(FxRebasinError):
    """The rewritten model does not compute what the original computes."""


class ExportError(FxRebasinError):
    """The model could not be exported, checked or run outside PyTorch."""


class FxRebasinWarning(UserWarning):
    """Something was done in another way than asked, or is worth a look; nothing was refused."""
