"""The playground: a small open world of illustrated scenes with exact ground truth and captions."""

from __future__ import annotations

from tcl_core.playground.captions import caption, caption_words
from tcl_core.playground.scenes import CLASS_NAMES, Placed, Scene, draw_scene, scene_rng
from tcl_core.playground.world import COLORS, KINDS, PATTERNS, STUFF_NAMES, SYNONYMS, is_held_out

__all__ = [
    "CLASS_NAMES",
    "COLORS",
    "KINDS",
    "PATTERNS",
    "STUFF_NAMES",
    "SYNONYMS",
    "Placed",
    "Scene",
    "caption",
    "caption_words",
    "draw_scene",
    "is_held_out",
    "scene_rng",
]
