"""What exists in the playground: kinds, colors, patterns, background stuff, and what is held out.

The playground is a small open world with exact ground truth. A fifth of the kind-color combinations is held
out of training, in images and in captions, so that a model can be asked about things it has never seen.
"""

from __future__ import annotations

from tcl_core.playground.shapes import SHAPES

__all__ = ["COLORS", "KINDS", "PATTERNS", "STUFF", "STUFF_NAMES", "SYNONYMS", "is_held_out"]

KINDS: tuple[str, ...] = tuple(sorted(SHAPES))
"""Names of the kinds of objects, sorted."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 32, 38),
    "orange": (242, 130, 24),
    "yellow": (246, 216, 40),
    "green": (40, 150, 58),
    "turquoise": (40, 196, 190),
    "blue": (40, 80, 210),
    "purple": (126, 50, 170),
    "pink": (248, 140, 184),
    "brown": (122, 72, 36),
    "black": (28, 28, 32),
    "grey": (132, 134, 138),
    "white": (240, 240, 240),
}
"""sRGB of every color."""

PATTERNS: tuple[str, ...] = ("plain", "striped", "spotted", "checked", "zigzag", "speckled")
"""Surface patterns; ``plain`` is never said in a caption."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "sofa": ("couch",),
    "cup": ("mug",),
    "plane": ("aeroplane", "airplane"),
    "car": ("automobile",),
    "boat": ("sailboat",),
    "house": ("cottage",),
    "television": ("tv",),
    "shirt": ("tshirt",),
    "cat": ("kitten",),
}
"""Other words of a kind that captions use as well as its name."""

STUFF: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "on grass", "in the meadow", "on a lawn"),
    "sand": ("on the sand", "on sand", "at the beach"),
    "water": ("in the water", "on water", "on the lake"),
    "brick": ("in front of a brick wall", "on brick", "against bricks"),
    "wood": ("on wood", "on a wooden floor", "on wooden planks"),
    "sky": ("in the sky", "under the sky", "against the sky"),
    "snow": ("in the snow", "on snow"),
    "gravel": ("on gravel", "on the gravel"),
    "tiles": ("on tiles", "on a tiled floor"),
    "soil": ("on soil", "on the muddy soil", "in the soil"),
    "straw": ("on straw", "in the straw"),
    "marble": ("on marble", "on a marble floor"),
}
"""Background stuff and the phrases that place an object on it."""

STUFF_NAMES: tuple[str, ...] = tuple(STUFF)


def is_held_out(kind: str, color: str) -> bool:
    """Whether a combination never occurs in training.

    The fifth is spread evenly: every kind and every color keeps about four fifths of its partners.

    Args:
        kind: a name from ``KINDS``.
        color: a name from ``COLORS``.

    Returns:
        True for exactly the held-out combinations.

    Example:
        >>> held = sum(is_held_out(k, c) for k in KINDS for c in COLORS)
        >>> 0.19 < held / (len(KINDS) * len(COLORS)) < 0.21
        True
    """
    return (KINDS.index(kind) + 3 * list(COLORS).index(color)) % 5 == 0
