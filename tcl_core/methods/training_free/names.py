"""Names that compete with the labels of a vocabulary and stand for everything else in an image.

A softmax over one name is 1 everywhere, so that a vocabulary of one label would cover every image. The benchmarks of
training-free methods let these names stand for their class "background" (SCLIP, arXiv 2312.01597).
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
