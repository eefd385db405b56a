"""The command line, one file per command.

Exit codes: 0, all is well; 1, a check failed (two models are not equivalent, or an export cannot be
run); 2, the command or its input cannot be used, or code of a model or of data raised something; 3,
a fault of this package; 130, interrupted. What a command needs is imported when it runs.
"""

from fxrebasin.cli.apply import apply
from fxrebasin.cli.barrier import barrier
from fxrebasin.cli.compose import compose
from fxrebasin.cli.demo import demo
from fxrebasin.cli.export import export
from fxrebasin.cli.group import main
from fxrebasin.cli.inspect import inspect
from fxrebasin.cli.interpolate import interpolate
from fxrebasin.cli.merge import merge
from fxrebasin.cli.run import run
from fxrebasin.cli.transform import transform
from fxrebasin.cli.verify import verify

_COMMANDS = (
    *(merge, transform, interpolate, barrier, apply, compose),
    *(inspect, verify, export, run, demo),
)
for _command in _COMMANDS:
    main.add_command(_command)

__all__ = ["main"]
