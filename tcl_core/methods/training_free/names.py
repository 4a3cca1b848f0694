"""Few names of the background, for a method that cannot have many.

The benchmarks of training-free methods let such names stand for their class "background" (SCLIP, arXiv 2312.01597).
"""

from __future__ import annotations

__all__ = ["BACKGROUND_NAMES"]

BACKGROUND_NAMES = (
    "sky",
    "wall",
    "tree",
    "wood",
    "grass",
    "road",
    "sea",
    "river",
    "mountain",
    "sands",
    "desk",
    "bed",
    "building",
    "cloud",
    "lamp",
    "door",
    "window",
    "wardrobe",
    "ceiling",
    "shelf",
    "curtain",
    "stair",
    "floor",
    "hill",
    "rail",
    "fence",
)
