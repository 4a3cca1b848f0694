"""``python -m benchmarks.gpu``."""

from __future__ import annotations

import sys

from benchmarks.gpu.command import main

sys.exit(main())
