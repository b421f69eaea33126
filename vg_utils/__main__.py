"""`python -m vg_utils`: see `vg_utils.cli`."""

from vg_utils.cli import program

program()
