"""The silhouettes of the playground's kinds of objects.

A kind is a list of parts in a unit square (x to the right, y down, both in ``[-1, 1]``). Every part is a closed
polygon with a role that says how it is painted:

* ``body``: the object's color and surface pattern;
* ``dark`` and ``light``: a shade and a tint of the object's color, for details;
* ``window``, ``rubber``, ``leaf``, ``timber``, ``paper``, ``glow``, ``metal``, ``skin``, ``berry``: materials, which
  have the same color whatever the color of the object;
* ``cut``: takes away what was painted so far (the hole of a handle).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["MATERIALS", "SHAPES", "Part", "Role"]

Role = Literal[
    "body", "dark", "light", "cut", "window", "rubber", "leaf", "timber", "paper", "glow", "metal", "skin", "berry"
]
Points = NDArray[np.float64]


MATERIALS: dict[str, tuple[int, int, int]] = {
    "window": (170, 220, 244),
    "rubber": (44, 44, 50),
    "leaf": (66, 158, 56),
    "timber": (124, 78, 40),
    "paper": (252, 246, 228),
    "glow": (255, 222, 96),
    "metal": (168, 174, 184),
    "skin": (238, 196, 158),
    "berry": (206, 24, 92),
}
"""sRGB of every material."""


@dataclass(frozen=True)
class Part:
    """One painted polygon of a kind.

    Attributes:
        points: float64 ``[N, 2]``, x and y in ``[-1, 1]``.
        role: how the polygon is painted.
    """

    points: Points
    role: Role = "body"


def _poly(*xy: float, role: Role = "body") -> Part:
    return Part(np.asarray(xy, dtype=np.float64).reshape(-1, 2), role)


def _ellipse(cx: float, cy: float, rx: float, ry: float | None = None, role: Role = "body", turn: float = 0.0) -> Part:
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x, y = rx * np.cos(angle), (rx if ry is None else ry) * np.sin(angle)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return Part(np.stack([cx + c * x - s * y, cy + s * x + c * y], axis=1), role)


def _rect(x0: float, y0: float, x1: float, y1: float, role: Role = "body") -> Part:
    return _poly(x0, y0, x1, y0, x1, y1, x0, y1, role=role)


def _arc(cx: float, cy: float, outer: float, inner: float, start: float, end: float, role: Role = "body") -> Part:
    angle = np.radians(np.linspace(start, end, 30))
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Part(np.concatenate([ring * outer, ring[::-1] * inner]) + [cx, cy], role)


def _star(points: int, outer: float, inner: float, role: Role = "body", cx: float = 0.0, cy: float = 0.0) -> Part:
    angle = np.linspace(0, 2 * math.pi, 2 * points, endpoint=False) - math.pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return Part(np.stack([cx + radius * np.cos(angle), cy + radius * np.sin(angle)], axis=1), role)


def _curve(formula: Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Part:
    x, y = formula(np.linspace(0, 2 * math.pi, 60, endpoint=False))
    return Part(np.stack([x, y], axis=1))


def _heart() -> Part:
    return _curve(
        lambda a: (
            0.95 * np.sin(a) ** 3,
            -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)) / 16.5,
        )
    )


SHAPES: dict[str, tuple[Part, ...]] = {
    "ball": (
        _ellipse(0, 0, 0.88),
        *(_arc(0, 0, 0.88, 0.01, start, start + 60, "paper") for start in (0, 120, 240)),
        _ellipse(0, 0, 0.2, role="berry"),
    ),
    "star": (_star(5, 1.0, 0.45), _star(5, 0.6, 0.26, "paper")),
    "heart": (
        _heart(),
        _poly(-0.95, 0.42, 0.62, -0.5, 0.7, -0.36, -0.87, 0.56, role="timber"),
        _poly(0.5, -0.6, 1, -0.68, 0.76, -0.2, role="metal"),
    ),
    "moon": (
        Part(
            np.concatenate(
                [_arc(0, 0, 0.95, 0.95, 50, 310).points[:30], _arc(0.42, 0, 0.82, 0.82, 300, 60).points[:30]]
            )
        ),
        _star(5, 0.42, 0.18, "glow", 0.45, 0.05),
    ),
    "house": (
        _rect(-0.75, -0.1, 0.75, 0.95),
        _poly(-1, -0.1, 0, -1, 1, -0.1, role="timber"),
        _rect(-0.2, 0.35, 0.2, 0.95, "timber"),
        _rect(-0.6, 0.1, -0.3, 0.4, "window"),
        _rect(0.3, 0.1, 0.6, 0.4, "window"),
    ),
    "tree": (
        _rect(-0.16, 0.3, 0.16, 1, "timber"),
        _ellipse(0, -0.55, 0.45),
        _ellipse(-0.4, -0.05, 0.48),
        _ellipse(0.4, -0.05, 0.48),
        _ellipse(0, -0.1, 0.5),
        *(_ellipse(x, y, 0.14, role="berry") for x, y in ((-0.4, -0.1), (0.05, -0.6), (0.4, 0.05))),
    ),
    "cactus": (
        _rect(-0.24, -0.95, 0.24, 1),
        _rect(-0.8, -0.35, -0.5, 0.3),
        _rect(-0.8, 0.05, -0.1, 0.35),
        _rect(0.5, -0.6, 0.8, 0.1),
        _rect(0.1, -0.15, 0.8, 0.15),
        _ellipse(0, -0.9, 0.24, 0.16, "berry"),
        _rect(-0.05, -0.6, 0.05, 0.95, "paper"),
    ),
    "flower": (
        _rect(-0.08, 0, 0.08, 1, "leaf"),
        *(
            _ellipse(0.4 * math.cos(a), -0.32 + 0.4 * math.sin(a), 0.27)
            for a in np.linspace(0, 2 * math.pi, 6, endpoint=False)
        ),
        _ellipse(0, -0.32, 0.25, role="glow"),
    ),
    "mushroom": (
        _rect(-0.26, 0, 0.26, 0.95, "paper"),
        _arc(0, 0.15, 0.98, 0.01, 180, 360),
        *(_ellipse(x, y, 0.16, role="paper") for x, y in ((-0.52, -0.1), (0, -0.45), (0.52, -0.1))),
    ),
    "apple": (
        _ellipse(-0.3, 0.15, 0.6, 0.75),
        _ellipse(0.3, 0.15, 0.6, 0.75),
        _rect(-0.07, -0.95, 0.07, -0.4, "timber"),
        _ellipse(0.32, -0.78, 0.28, 0.13, "leaf", -25),
    ),
    "banana": (
        _arc(0, -0.65, 1.35, 0.85, 25, 155),
        _poly(-1.2499, -0.2, -1.0, -0.3, -0.78, 0.02, -0.95, 0.12, role="timber"),
        _poly(1.2499, -0.2, 1.0, -0.3, 0.78, 0.02, 0.95, 0.12, role="timber"),
    ),
    "carrot": (
        _poly(-0.45, -0.4, 0.45, -0.4, 0.05, 1, -0.05, 1),
        _poly(-0.1, -0.4, -0.5, -1, -0.2, -0.95, 0, -0.55, 0.2, -0.95, 0.5, -1, 0.1, -0.4, role="leaf"),
    ),
    "cat": (
        _ellipse(0.05, 0.45, 0.55, 0.52),
        _ellipse(-0.3, -0.3, 0.45),
        _poly(-0.72, -0.35, -0.7, -1, -0.3, -0.65),
        _poly(-0.3, -0.65, 0.08, -1, 0.1, -0.35),
        _arc(0.55, 0.4, 0.5, 0.34, -90, 80),
        _ellipse(-0.45, -0.35, 0.08, role="glow"),
        _ellipse(-0.15, -0.35, 0.08, role="glow"),
        _ellipse(-0.3, -0.12, 0.2, 0.12, "paper"),
        _ellipse(0.0, 0.5, 0.26, 0.34, "paper"),
    ),
    "fish": (
        _ellipse(-0.2, 0, 0.75, 0.48),
        _poly(0.35, 0, 1, -0.55, 0.85, 0, 1, 0.55),
        _ellipse(-0.6, -0.1, 0.12, role="rubber"),
        _poly(-0.2, -0.4, 0.15, -0.8, 0.25, -0.3, role="glow"),
        _poly(-0.3, -0.46, -0.1, -0.46, -0.1, 0.46, -0.3, 0.46, role="paper"),
        _poly(0.12, -0.4, 0.28, -0.34, 0.28, 0.34, 0.12, 0.4, role="paper"),
    ),
    "bird": (
        _ellipse(0.05, 0.1, 0.62, 0.45),
        _ellipse(-0.5, -0.4, 0.32),
        _poly(-0.78, -0.5, -1.05, -0.3, -0.75, -0.25, role="glow"),
        _poly(0.45, 0, 1, -0.25, 0.95, 0.2, 0.5, 0.35),
        _poly(-0.1, -0.05, 0.5, 0, 0.2, 0.4, role="dark"),
        _rect(-0.15, 0.5, -0.05, 0.95, "glow"),
        _rect(0.15, 0.5, 0.25, 0.95, "glow"),
    ),
    "butterfly": (
        _ellipse(-0.5, -0.4, 0.48, 0.45, turn=30),
        _ellipse(0.5, -0.4, 0.48, 0.45, turn=-30),
        _ellipse(-0.4, 0.45, 0.36, 0.4),
        _ellipse(0.4, 0.45, 0.36, 0.4),
        *(_ellipse(x, y, 0.19, role="glow") for x, y in ((-0.52, -0.42), (0.52, -0.42), (-0.42, 0.47), (0.42, 0.47))),
        _ellipse(0, 0, 0.13, 0.78, "rubber"),
    ),
    "snail": (
        _poly(-1, 0.85, -0.95, 0.4, -0.6, 0.4, -0.5, 0.6, 0.8, 0.6, 1, 0.85, role="skin"),
        _ellipse(0.15, 0.05, 0.65),
        _arc(0.15, 0.05, 0.42, 0.26, 0, 300, "dark"),
        _rect(-0.95, -0.05, -0.86, 0.45, "skin"),
        _rect(-0.72, -0.05, -0.63, 0.45, "skin"),
    ),
    "car": (
        _rect(-1, -0.05, 1, 0.5),
        _poly(-0.6, -0.05, -0.4, -0.55, 0.4, -0.55, 0.65, -0.05),
        _poly(-0.42, -0.08, -0.3, -0.42, -0.04, -0.42, -0.04, -0.08, role="window"),
        _poly(0.06, -0.08, 0.06, -0.42, 0.32, -0.42, 0.45, -0.08, role="window"),
        _ellipse(-0.55, 0.5, 0.27, role="rubber"),
        _ellipse(0.55, 0.5, 0.27, role="rubber"),
        _rect(-1, 0.02, -0.82, 0.24, "glow"),
    ),
    "bus": (
        _rect(-0.98, -0.7, 0.98, 0.6),
        *(_rect(x, -0.5, x + 0.34, -0.05, "window") for x in (-0.85, -0.4, 0.05, 0.5)),
        _rect(-0.98, 0.1, 0.98, 0.3, "paper"),
        _ellipse(-0.55, 0.62, 0.24, role="rubber"),
        _ellipse(0.55, 0.62, 0.24, role="rubber"),
    ),
    "boat": (
        _poly(-1, 0.3, 1, 0.3, 0.65, 0.85, -0.65, 0.85),
        _rect(-0.08, -1, 0.04, 0.3, "timber"),
        _poly(0.08, -0.95, 0.85, 0.15, 0.08, 0.15, role="paper"),
        _poly(-0.12, -0.75, -0.7, 0.15, -0.12, 0.15, role="paper"),
    ),
    "plane": (
        _ellipse(0, 0, 0.98, 0.2),
        _poly(-0.15, 0, 0.35, -0.95, 0.55, -0.95, 0.3, 0, 0.55, 0.95, 0.35, 0.95),
        _poly(0.6, 0, 0.8, -0.45, 0.98, -0.45, 0.9, 0, 0.98, 0.45, 0.8, 0.45),
        _ellipse(-0.75, 0, 0.16, 0.12, "window"),
        _rect(0.05, -0.62, 0.4, -0.44, "metal"),
        _rect(0.05, 0.44, 0.4, 0.62, "metal"),
    ),
    "rocket": (
        _poly(-0.32, 0.6, -0.35, -0.3, 0, -1, 0.35, -0.3, 0.32, 0.6),
        _poly(-0.33, 0.1, -0.75, 0.8, -0.3, 0.6, role="berry"),
        _poly(0.33, 0.1, 0.75, 0.8, 0.3, 0.6, role="berry"),
        _ellipse(0, -0.2, 0.17, role="window"),
        _poly(-0.2, 0.62, 0, 1, 0.2, 0.62, role="glow"),
    ),
    "balloon": (
        _ellipse(0, -0.3, 0.62, 0.7),
        _poly(-0.13, 0.52, 0.13, 0.52, 0, 0.38),
        _rect(-0.04, 0.5, 0.04, 1, "paper"),
        _ellipse(-0.25, -0.55, 0.14, 0.22, "paper", 25),
    ),
    "umbrella": (
        _arc(0, 0.05, 1, 0.01, 180, 360),
        _arc(0, 0.05, 1, 0.01, 216, 252, "paper"),
        _arc(0, 0.05, 1, 0.01, 288, 324, "paper"),
        _rect(-0.05, 0, 0.05, 0.85, "timber"),
        _arc(0.17, 0.8, 0.22, 0.11, 0, 180, "timber"),
    ),
    "chair": (
        _rect(-0.6, -1, -0.35, 1),
        _rect(-0.6, 0.05, 0.65, 0.3),
        _rect(0.42, 0.3, 0.65, 1, "timber"),
        _rect(-0.6, 0.3, -0.35, 1, "timber"),
        _rect(-0.4, -0.9, -0.1, 0.1, "paper"),
    ),
    "table": (
        _rect(-1, -0.35, 1, -0.05),
        _ellipse(0.3, -0.5, 0.26, 0.16, "berry"),
        _rect(-0.85, -0.05, -0.62, 0.8, "timber"),
        _rect(0.62, -0.05, 0.85, 0.8, "timber"),
    ),
    "sofa": (
        _rect(-0.75, -0.55, 0.75, 0.3),
        _rect(-1, -0.1, -0.65, 0.65),
        _rect(0.65, -0.1, 1, 0.65),
        _rect(-0.7, 0.15, 0.7, 0.65, "dark"),
        _rect(-0.9, 0.65, -0.75, 0.85, "timber"),
        _rect(0.75, 0.65, 0.9, 0.85, "timber"),
        _rect(-0.6, -0.25, -0.15, 0.18, "glow"),
        _rect(0.15, -0.25, 0.6, 0.18, "glow"),
    ),
    "bed": (
        _rect(-1, -0.7, -0.82, 0.8, "timber"),
        _rect(0.85, -0.1, 1, 0.8, "timber"),
        _rect(-0.85, 0.05, 0.88, 0.5),
        _ellipse(-0.55, -0.1, 0.3, 0.2, "paper"),
        _rect(0.2, 0.05, 0.45, 0.5, "paper"),
    ),
    "lamp": (
        _poly(-0.35, -0.95, 0.35, -0.95, 0.72, 0.05, -0.72, 0.05),
        _poly(-0.66, -0.1, 0.66, -0.1, 0.78, 0.15, -0.78, 0.15, role="glow"),
        _rect(-0.08, 0.05, 0.08, 0.75, "metal"),
        _ellipse(0, 0.82, 0.5, 0.16, "metal"),
    ),
    "cup": (
        _arc(0.5, 0, 0.48, 0.26, -90, 90),
        _poly(-0.8, -0.7, 0.55, -0.7, 0.42, 0.8, -0.67, 0.8),
        _ellipse(-0.12, -0.7, 0.67, 0.18, "timber"),
        _ellipse(-0.12, 0.1, 0.24, role="paper"),
    ),
    "bottle": (
        _poly(-0.4, 1, -0.4, -0.15, -0.16, -0.5, -0.16, -0.8, 0.16, -0.8, 0.16, -0.5, 0.4, -0.15, 0.4, 1),
        _rect(-0.2, -1, 0.2, -0.78, "metal"),
        _rect(-0.4, 0.1, 0.4, 0.6, "paper"),
    ),
    "clock": (
        _ellipse(0, 0, 0.95),
        _ellipse(0, 0, 0.72, role="paper"),
        _rect(-0.07, -0.6, 0.07, 0.07, "rubber"),
        _rect(-0.07, -0.07, 0.45, 0.07, "rubber"),
    ),
    "book": (
        _poly(-1, -0.6, 0, -0.42, 0, 0.75, -1, 0.57),
        _poly(1, -0.6, 0, -0.42, 0, 0.75, 1, 0.57),
        _poly(-0.85, -0.45, -0.1, -0.3, -0.1, 0.55, -0.85, 0.4, role="paper"),
        _poly(0.85, -0.45, 0.1, -0.3, 0.1, 0.55, 0.85, 0.4, role="paper"),
    ),
    "hat": (_ellipse(0, 0.5, 1, 0.24), _rect(-0.52, -0.75, 0.52, 0.5), _rect(-0.52, 0.05, 0.52, 0.36, "berry")),
    "shoe": (
        _poly(-0.9, -0.6, -0.25, -0.6, 0, -0.05, 0.75, 0.1, 1, 0.5, -0.9, 0.5),
        _rect(-0.95, 0.45, 1, 0.65, "rubber"),
        _poly(-0.15, -0.35, 0.05, -0.05, -0.15, 0.05, -0.35, -0.25, role="paper"),
    ),
    "shirt": (
        _rect(-0.5, -0.75, 0.5, 0.95),
        _poly(-0.5, -0.75, -1.02, -0.3, -0.75, 0.1, -0.5, -0.1),
        _poly(0.5, -0.75, 1.02, -0.3, 0.75, 0.1, 0.5, -0.1),
        _poly(-0.26, -0.76, 0.26, -0.76, 0, -0.36, role="skin"),
        *(_ellipse(0, y, 0.1, role="paper") for y in (-0.1, 0.25, 0.6)),
    ),
    "guitar": (
        _ellipse(0, 0.58, 0.52, 0.42),
        _ellipse(0, 0.05, 0.38, 0.34),
        _rect(-0.09, -0.95, 0.09, 0.2, "timber"),
        _rect(-0.17, -1, 0.17, -0.76, "timber"),
        _ellipse(0, 0.32, 0.16, role="timber"),
    ),
    "bell": (
        _poly(-0.85, 0.55, -0.55, 0.25, -0.5, -0.35, -0.2, -0.75, 0.2, -0.75, 0.5, -0.35, 0.55, 0.25, 0.85, 0.55),
        _rect(-0.6, 0.15, 0.6, 0.32, "glow"),
        _ellipse(0, 0.7, 0.22, role="metal"),
        _ellipse(0, -0.83, 0.16, role="metal"),
    ),
    "crown": (
        _poly(-0.95, -0.6, -0.45, 0.05, 0, -0.8, 0.45, 0.05, 0.95, -0.6, 0.8, 0.7, -0.8, 0.7),
        _rect(-0.8, 0.45, 0.8, 0.75, "glow"),
        *(_ellipse(x, y, 0.14, role="berry") for x, y in ((-0.45, 0.3), (0, 0.2), (0.45, 0.3))),
    ),
    "envelope": (
        _rect(-0.95, -0.6, 0.95, 0.6),
        _poly(-0.95, -0.6, 0.95, -0.6, 0, 0.15, role="paper"),
        _ellipse(0, 0.1, 0.2, role="berry"),
    ),
    "television": (
        _rect(-0.95, -0.7, 0.95, 0.6),
        _rect(-0.78, -0.54, 0.48, 0.44, "window"),
        _ellipse(0.7, -0.35, 0.12, role="rubber"),
        _ellipse(0.7, 0.0, 0.12, role="rubber"),
        _poly(-0.4, 0.85, -0.2, 0.6, 0.2, 0.6, 0.4, 0.85, role="timber"),
    ),
    "robot": (
        _rect(-0.5, -0.95, 0.5, -0.3),
        _rect(-0.62, -0.2, 0.62, 0.55),
        _rect(-0.95, -0.15, -0.7, 0.45, "metal"),
        _rect(0.7, -0.15, 0.95, 0.45, "metal"),
        _rect(-0.15, -0.3, 0.15, -0.18, "metal"),
        _rect(-0.5, 0.55, -0.15, 1, "metal"),
        _rect(0.15, 0.55, 0.5, 1, "metal"),
        _ellipse(-0.22, -0.65, 0.12, role="glow"),
        _ellipse(0.22, -0.65, 0.12, role="glow"),
    ),
}
"""Parts of every kind, keyed by the kind's name."""
