"""Steps of the scenario that an image is kept of, in their order."""

from __future__ import annotations

__all__ = ["STEPS"]

STEPS = ("opened", "typed", "segmented", "threshold", "corrected", "accepted", "exported")
