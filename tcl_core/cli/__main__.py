"""``python -m tcl_core.cli`` is ``tcl-annotate``."""

from __future__ import annotations

from tcl_core.cli.main import main

# Processes that are started anew import this module, too.
if __name__ == "__main__":
    main()
