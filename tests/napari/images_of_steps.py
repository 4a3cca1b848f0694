"""Steps of the scenario, in their order; a screenshot of each is kept."""

from __future__ import annotations

__all__ = ["STEPS"]

STEPS = ("opened", "typed", "segmented", "threshold", "corrected", "accepted", "exported")
