"""The command `fxrebasin` itself: what it is, and how it ends."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import click

from fxrebasin.cli.endings import ending, interrupts
from fxrebasin.cli.options import ARGUMENTS, DEBUG, debug_option
from fxrebasin.cli.streams import drop_what_cannot_be_printed, plain_warnings, use_standard_streams
from fxrebasin.streaming.started import are_several
from fxrebasin.wording import speaking_options

_SHARED = ("transform", "merge", "interpolate")
_OF_CLICK = (click.ClickException, click.exceptions.Exit, click.Abort)


class Commands(click.Group):
    """Turns whatever is raised into a message and an exit code."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Keep what was written, for reports."""
        use_standard_streams()
        written = tuple(args)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = written
        return context

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse commands that several processes would each do as a whole."""
        name, command, rest = super().resolve_command(ctx, args)
        if name not in _SHARED and are_several():
            raise click.UsageError(
                f"{name} is not for several processes; torchrun starts {', '.join(_SHARED)}"
            )
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a traceback is shown with --debug only."""
        with interrupts() as state:
            try:
                with speaking_options(), plain_warnings():
                    return super().invoke(ctx)
            except _OF_CLICK:
                raise
            except BaseException as error:
                end = ending(error, state)
                if end is None:
                    raise
                shown = "".join(traceback.format_exception(error)) if ctx.meta.get(DEBUG) else ""
                with contextlib.suppress(OSError):  # nothing can be said there
                    click.echo(shown + end.message, nl=bool(end.message), err=True)
                ctx.exit(end.code)
            finally:
                drop_what_cannot_be_printed()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fxrebasin", prog_name="fxrebasin")
@debug_option
def main() -> None:
    """Find the permutation symmetries of PyTorch models and align models with them.

    MODEL is torchvision:NAME, timm:NAME, package.module:callable, or the path of a Hugging Face
    config.json. Exit codes: 0 fine, 1 a check failed, 2 bad usage or input, 3 a fault
    of fxrebasin itself, 130 interrupted.
    """
