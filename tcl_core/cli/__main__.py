"""``python -m tcl_core.cli`` is ``tcl-annotate``."""

from __future__ import annotations

from tcl_core.cli.main import main

main()
