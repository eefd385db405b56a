"""The command `fxrebasin` itself: what it is, and how errors end it."""

from __future__ import annotations

from typing import Any

import click

from fxrebasin.cli.options import ARGUMENTS, DEBUG, debug_option
from fxrebasin.errors import EquivalenceError, ExportError, FxRebasinError
from fxrebasin.wording import speaking_options

CHECK_FAILED = 1
BAD_INPUT = 2


class Commands(click.Group):
    """Turns the package's errors into a message and an exit code."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Keep what was written, for reports."""
        written = tuple(args)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = written
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors of the package end it without a traceback unless --debug is set."""
        try:
            with speaking_options():
                return super().invoke(ctx)
        except FxRebasinError as error:
            if ctx.meta.get(DEBUG):
                raise
            click.echo(f"Error: {error}", err=True)
            failed = isinstance(error, EquivalenceError | ExportError)
            ctx.exit(CHECK_FAILED if failed else BAD_INPUT)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fxrebasin", prog_name="fxrebasin")
@debug_option
def main() -> None:
    """Find the permutation symmetries of PyTorch models and align models with them.

    MODEL is torchvision:NAME, timm:NAME, package.module:callable, or the path of a Hugging Face
    config.json. Exit codes: 0 fine, 1 a check failed, 2 bad usage or input.
    """
