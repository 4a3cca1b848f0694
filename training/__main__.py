"""``python -m training``: the command ``tcl-annotate train``, also where the package is not installed."""

from __future__ import annotations

import sys

from tcl_core.cli.main import cli, main
from training.cli import command

cli.add_command(command, "train")
main(["train", *sys.argv[1:]])
