"""Scenes of the playground: images with exact ground truth, the same for the same seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tcl_core.playground.shapes import MATERIALS, SHAPES
from tcl_core.playground.textures import crop_texture
from tcl_core.playground.world import COLORS, KINDS, PATTERNS, STUFF_NAMES, is_held_out

__all__ = ["CLASS_NAMES", "Combinations", "Placed", "Scene", "draw_scene", "scene_rng"]

CLASS_NAMES: tuple[str, ...] = KINDS + STUFF_NAMES
"""Every class of the world; class ``k`` of a label map (counted from 1) is ``CLASS_NAMES[k - 1]``."""

Combinations = Literal["seen", "held-out", "all"]
"""Which kind-color combinations a scene may use."""

_OVERSAMPLING = 3
_MIN_VISIBLE = 0.45
_DARK, _LIGHT = 0.45, 0.6
_OUTLINE = 0.07
_DARK_LINE = np.asarray((24, 22, 28), np.float32)
_PALE_LINE = np.asarray((186, 186, 192), np.float32)
_CODES = {"cut": 0, "body": 1, "dark": 2, "light": 3, "outline": 4} | {n: 5 + i for i, n in enumerate(MATERIALS)}
_COLOR_VALUES = {name: np.asarray(rgb, np.float32) for name, rgb in COLORS.items()}
_ALLOWED = {
    "seen": {k: [c for c in COLORS if not is_held_out(k, c)] for k in KINDS},
    "held-out": {k: [c for c in COLORS if is_held_out(k, c)] for k in KINDS},
    "all": {k: list(COLORS) for k in KINDS},
}


@dataclass(frozen=True)
class Placed:
    """One object of a scene.

    Attributes:
        kind: name of the kind.
        color: name of the color.
        pattern: name of the surface pattern.
        size: half the side of its unit square, in pixels.
        center: x and y of its center in pixels.
        stuff: the background under its center, or ``None`` on a plain backdrop.
        visible: share of its pixels that no later object hides, in ``[0, 1]``.
    """

    kind: str
    color: str
    pattern: str
    size: float
    center: tuple[float, float]
    stuff: str | None
    visible: float = 1.0


@dataclass(frozen=True)
class Scene:
    """An image and everything that is true about it.

    Attributes:
        image: uint8 ``[H, W, 3]`` sRGB.
        label_map: int32 ``[H, W]``; 0 for a plain backdrop, else the class counted from 1 in ``CLASS_NAMES``.
        objects: what was placed, from back to front.
        stuff: names of the background stuff in the image, largest first; empty on a plain backdrop.
    """

    image: NDArray[np.uint8]
    label_map: NDArray[np.int32]
    objects: tuple[Placed, ...]
    stuff: tuple[str, ...]


def scene_rng(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The generator of scene ``index``; independent of how many scenes are drawn, and in which order."""
    return np.random.default_rng([seed, index, stream])


def _pattern_field(rng: np.random.Generator, pattern: str, side: int, size: float) -> NDArray[np.float32]:
    """Weight of the second color, float32 ``[side, side]`` in ``[0, 1]``."""
    period = max(4.0, size * rng.uniform(0.28, 0.45)) * _OVERSAMPLING
    turn = rng.uniform(0, math.pi)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    u = (x * math.cos(turn) + y * math.sin(turn)) / period
    v = (y * math.cos(turn) - x * math.sin(turn)) / period
    if pattern == "striped":
        field = (u % 1) < 0.5
    elif pattern == "spotted":
        field = ((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < 0.085
    elif pattern == "checked":
        field = ((u % 1) < 0.5) ^ ((v % 1) < 0.5)
    elif pattern == "zigzag":
        field = ((u + 0.6 * np.abs((1.2 * v) % 1 - 0.5)) % 1) < 0.5
    elif pattern == "speckled":
        cells = rng.random((side // 6 + 1, side // 6 + 1)) < 0.3
        field = np.kron(cells, np.ones((6, 6), bool))[:side, :side]
    else:
        return np.zeros((side, side), np.float32)
    return field.astype(np.float32)


def _draw_object(
    rng: np.random.Generator, kind: str, color: str, pattern: str, size: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Paint one object; returns float32 colors ``[s, s, 3]`` and coverage ``[s, s]`` in ``[0, 1]``."""
    half = int(math.ceil(size * 1.25)) + 1
    side = 2 * half * _OVERSAMPLING
    turn = math.radians(rng.uniform(-18, 18))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    stretch = rng.uniform(0.88, 1.14)
    c, s = math.cos(turn), math.sin(turn)
    transform = np.array([[c * flip * stretch, -s / stretch], [s * flip * stretch, c / stretch]]) * size * _OVERSAMPLING
    paint = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(paint)
    line = max(1, round(_OUTLINE * size * _OVERSAMPLING))
    for part in SHAPES[kind]:
        outline = [(float(px), float(py)) for px, py in part.points @ transform.T + side / 2]
        pen.polygon(outline, fill=_CODES[part.role])
        pen.line([*outline, *outline[:2]], fill=_CODES["outline"], width=line, joint="curve")
    code = np.asarray(paint)
    base = _COLOR_VALUES[color] + rng.normal(0, 9, 3).astype(np.float32)
    body = np.broadcast_to(base, (side, side, 3)).copy()
    if pattern != "plain":
        bright = float(base.mean()) > 120
        second = base * 0.5 if bright else base * 0.45 + 255 * 0.55
        weight = _pattern_field(rng, pattern, side, size)[..., None]
        body = body * (1 - weight) + second * weight
    body[code == _CODES["dark"]] = base * _DARK
    body[code == _CODES["light"]] = base * (1 - _LIGHT) + 255 * _LIGHT
    body[code == _CODES["outline"]] = _PALE_LINE if color == "black" else _DARK_LINE
    for name, rgb in MATERIALS.items():
        body[code == _CODES[name]] = rgb
    shade = 1 + 0.1 * np.linspace(1, -1, side, dtype=np.float32)[:, None, None] * rng.uniform(-1, 1)
    alpha = (code > 0).astype(np.float32)
    premultiplied = body * shade * alpha[..., None]
    blocks = (2 * half, _OVERSAMPLING, 2 * half, _OVERSAMPLING)
    coverage = alpha.reshape(blocks).mean(axis=(1, 3))
    colors = premultiplied.reshape(*blocks, 3).mean(axis=(1, 3)) / np.maximum(coverage, 1e-6)[..., None]
    return np.clip(colors, 0, 255).astype(np.float32), coverage.astype(np.float32)


def _draw_background(
    rng: np.random.Generator, height: int, width: int, plain: bool, zoom: float
) -> tuple[NDArray[np.float32], NDArray[np.int32], tuple[str, ...]]:
    """Backdrop, its label map and the names of its stuff."""
    labels = np.zeros((height, width), np.int32)
    if plain:
        canvas = np.full((height, width, 3), rng.uniform(0, 255), np.float32)
        canvas += np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * rng.uniform(0, 20)
        return np.clip(canvas + rng.normal(0, 4, 3).astype(np.float32), 0, 255), labels, ()
    count = int(rng.choice([1, 2, 3], p=[0.4, 0.45, 0.15]))
    names = [STUFF_NAMES[i] for i in rng.choice(len(STUFF_NAMES), count, replace=False)]
    if "sky" in names:
        names.insert(0, names.pop(names.index("sky")))
    canvas = crop_texture(rng, names[0], height, width, zoom)
    labels[:] = len(KINDS) + 1 + STUFF_NAMES.index(names[0])
    x = np.arange(width, dtype=np.float32) / width
    upright = rng.random() < 0.3 and "sky" not in names
    edges = np.sort(rng.uniform(0.25, 0.8, count - 1))
    for name, edge in zip(names[1:], edges, strict=True):
        wave = edge + rng.uniform(-0.15, 0.15) * (x - 0.5)
        wave = wave + rng.uniform(0, 0.04) * np.sin(2 * math.pi * (rng.uniform(0.5, 2.5) * x + rng.random()))
        if upright:
            below = np.arange(width)[None, :] >= np.interp(np.linspace(0, 1, height), x, wave)[:, None] * width
        else:
            below = np.arange(height)[:, None] >= wave[None, :] * height
        canvas[below] = crop_texture(rng, name, height, width, zoom)[below]
        labels[below] = len(KINDS) + 1 + STUFF_NAMES.index(name)
    area = {name: int((labels == len(KINDS) + 1 + STUFF_NAMES.index(name)).sum()) for name in names}
    return canvas, labels, tuple(sorted((n for n in names if area[n]), key=lambda n: -area[n]))


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = (128, 128),
    objects: tuple[int, int] = (2, 5),
    radius: tuple[float, float] = (14.0, 34.0),
    combinations: Combinations = "seen",
    plain: float = 0.0,
    zoom: float = 1.0,
) -> Scene:
    """Draw one scene.

    Objects are painted from back to front; one that would leave an earlier object less than 45 % visible is
    moved or left out.

    Args:
        rng: source of randomness (see ``scene_rng``).
        size: height and width in pixels.
        objects: smallest and largest number of objects.
        radius: smallest and largest half side of an object's unit square, in pixels.
        combinations: which kind-color combinations may occur.
        plain: probability of a plain studio backdrop instead of stuff.
        zoom: enlarges objects (``radius`` times ``zoom``) and the grain of the stuff alike.

    Returns:
        The scene.
    """
    height, width = size
    canvas, labels, stuff = _draw_background(rng, height, width, rng.random() < plain, zoom)
    owner = np.full((height, width), -1, np.int32)
    placed: list[Placed] = []
    areas: list[int] = []
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    for _ in range(4 * wanted):
        if len(placed) == wanted:
            break
        kind = KINDS[int(rng.integers(len(KINDS)))]
        colors = _ALLOWED[combinations][kind]
        color = colors[int(rng.integers(len(colors)))]
        pattern = PATTERNS[0] if rng.random() < 0.6 else PATTERNS[1 + int(rng.integers(len(PATTERNS) - 1))]
        half_side = zoom * math.exp(rng.uniform(math.log(radius[0]), math.log(radius[1])))
        cx = rng.uniform(half_side * 0.7, max(width - half_side * 0.7, half_side * 0.7 + 1))
        cy = rng.uniform(half_side * 0.7, max(height - half_side * 0.7, half_side * 0.7 + 1))
        painted, coverage = _draw_object(rng, kind, color, pattern, half_side)
        side = coverage.shape[0]
        top, left = int(round(cy)) - side // 2, int(round(cx)) - side // 2
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, height), min(left + side, width)
        if y0 >= y1 or x0 >= x1:
            continue
        part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        spot = (slice(y0, y1), slice(x0, x1))
        solid = coverage[part] > 0.5
        if solid.sum() < 40:
            continue
        hidden = np.bincount(owner[spot][solid & (owner[spot] >= 0)], minlength=len(placed))
        remaining = [int((owner == i).sum()) - int(hidden[i]) for i in range(len(placed))]
        if any(left_over < _MIN_VISIBLE * areas[i] for i, left_over in enumerate(remaining)):
            continue
        under = labels[min(max(int(cy), 0), height - 1), min(max(int(cx), 0), width - 1)]
        ground = STUFF_NAMES[under - len(KINDS) - 1] if under > len(KINDS) else (stuff[0] if stuff else None)
        alpha = coverage[part][..., None]
        canvas[spot] = canvas[spot] * (1 - alpha) + painted[part] * alpha
        labels[spot][solid] = KINDS.index(kind) + 1
        owner[spot][solid] = len(placed)
        areas.append(int(solid.sum()))
        placed.append(Placed(kind, color, pattern, half_side, (cx, cy), ground))
    canvas += rng.normal(0, rng.uniform(0, 6), canvas.shape).astype(np.float32)
    seen = tuple(
        Placed(p.kind, p.color, p.pattern, p.size, p.center, p.stuff, int((owner == i).sum()) / areas[i])
        for i, p in enumerate(placed)
    )
    return Scene(np.clip(canvas + 0.5, 0, 255).astype(np.uint8), labels, seen, stuff)
