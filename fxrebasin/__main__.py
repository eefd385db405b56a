"""`python -m fxrebasin` is the command `fxrebasin`."""

from fxrebasin.cli import main

main(prog_name="fxrebasin")
