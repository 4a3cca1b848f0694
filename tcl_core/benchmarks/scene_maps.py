"""Label maps to measure the time of polygons on: street-like ones, large ones, and one of thousands of tiny regions.

Street-like maps stand for hand-made masks of streets, which the project does not have: a few large surfaces in
perspective, ragged trees, thin poles, small people, borders that waver, and many specks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.draw import disk, ellipse, line, polygon

__all__ = ["scattered_map", "street_map", "tiny_map"]

_SKY, _BUILDING, _TREE, _ROAD, _SIDEWALK, _CAR, _FENCE, _POLE, _PERSON, _CYCLIST, _SIGN = range(1, 12)


def street_map(rng: np.random.Generator, size: tuple[int, int] = (360, 480)) -> NDArray[np.int32]:
    """A street: 11 labels, 150 to 200 regions or so at the default size, most of them under 20 pixels.

    Args:
        rng: decides everything.
        size: height and width in pixels.

    Returns:
        int32 ``[H, W]``, 0 where nothing is labeled.
    """
    canvas = np.full(size, _SKY, dtype=np.int32)
    horizon, vanish = float(rng.uniform(0.42, 0.55)), float(rng.uniform(0.35, 0.65))
    for edge, far in ((0.0, vanish - 0.04), (1.0, vanish + 0.04)):
        _row_of_houses(canvas, rng, edge, far, horizon)
    ground = [
        (0, 1),
        (0, horizon + 0.3),
        (vanish - 0.02, horizon),
        (vanish + 0.02, horizon),
        (1, horizon + 0.3),
        (1, 1),
    ]
    _fill(canvas, ground, _SIDEWALK)
    left, right = float(rng.uniform(-0.2, 0.2)), float(rng.uniform(0.8, 1.2))
    near = horizon + 0.02
    _fill(canvas, [(left, 1.01), (vanish - 0.015, near), (vanish + 0.015, near), (right, 1.01)], _ROAD)

    def on_ground(across: float, depth: float) -> tuple[float, float]:
        return vanish + (left + (right - left) * across - vanish) * depth, horizon + (1 - horizon) * depth

    for _ in range(rng.integers(0, 5)):
        across, depth = float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.3, 0.8))
        corners = [(across, depth), (across + 0.02, depth), (across + 0.02, depth + 0.15), (across, depth + 0.15)]
        _fill(canvas, [on_ground(*corner) for corner in corners], _SIGN)
    _trees(canvas, rng, horizon)
    if rng.random() < 0.6:
        x = float(rng.uniform(0, 0.25))
        edge_points = [(x, 0.12), (x + 0.2, 0.04), (x + 0.2, 0.08), (x, 0.22)]
        _fill(canvas, [(at, horizon + down) for at, down in edge_points], _FENCE)
    _traffic(canvas, rng, on_ground)
    _poles(canvas, rng, horizon)
    # Borders drawn by hand waver on two scales.
    places = np.mgrid[: size[0], : size[1]].astype(np.float64)
    for scale, amount in ((5, 1.8), (1.5, 0.45)):
        for axis in places:
            noise = gaussian_filter(rng.standard_normal(size), scale)
            axis += amount * noise / noise.std()
    canvas = map_coordinates(canvas, places, order=0, mode="nearest")
    for _ in range(rng.integers(5, 20)):
        row, column = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        tall, wide = rng.integers(1, 5, 2)
        canvas[row : row + tall, column : column + wide] = rng.integers(0, 12)
    return np.asarray(canvas, dtype=np.int32)


def scattered_map(rng: np.random.Generator, size: tuple[int, int], count: int) -> NDArray[np.int32]:
    """Rough round regions all over an image, some touching each other, on unlabeled ground.

    Args:
        rng: decides everything.
        size: height and width in pixels.
        count: how many; of 10 labels.

    Returns:
        int32 ``[H, W]``.
    """
    height, width = size
    canvas = Image.new("I", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    rows = max(1, int(np.sqrt(count * height / width)))
    columns = int(np.ceil(count / rows))
    cell = np.array([width / columns, height / rows])
    for k in range(count):
        center = (np.array([k % columns, k // columns]) + 0.5 + rng.uniform(-0.2, 0.2, 2)) * cell
        reach = cell.min() * rng.uniform(0.3, 0.62)
        corners = int(max(2 * np.pi * reach / 3, 12))
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radius = np.ones(corners)
        for wave in range(2, 12):
            radius += rng.normal(0, 0.25 / wave) * np.cos(wave * angle + rng.uniform(0, 7))
        radius = reach * np.maximum(radius, 0.2) + rng.normal(0, 1.0, corners)
        outline = np.stack([center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle)], axis=1)
        draw.polygon([tuple(point) for point in outline.tolist()], fill=k % 10 + 1)
    return np.asarray(canvas, dtype=np.int32)


def tiny_map(rng: np.random.Generator, size: tuple[int, int] = (120, 160), scale: float = 0.85) -> NDArray[np.int32]:
    """Thousands of regions of a few pixels: the arg-max of five fields that are hardly smooth.

    Args:
        rng: decides everything.
        size: height and width in pixels.
        scale: of the fields in pixels.

    Returns:
        int32 ``[H, W]``, labels 1 to 5.
    """
    fields = np.stack([gaussian_filter(rng.standard_normal(size), scale) for _ in range(5)])
    return np.asarray(fields.argmax(axis=0) + 1, dtype=np.int32)


def _fill(canvas: NDArray[np.int32], corners: list[tuple[float, float]], value: int) -> None:
    """Fill a polygon whose corners are shares of the width and of the height."""
    x, y = np.asarray(corners, dtype=np.float64).T
    canvas[polygon(y * canvas.shape[0], x * canvas.shape[1], canvas.shape)] = value


def _row_of_houses(
    canvas: NDArray[np.int32], rng: np.random.Generator, edge: float, far: float, horizon: float
) -> None:
    top = float(rng.uniform(-0.1, 0.15))
    walls = np.linspace(edge, far, int(rng.integers(4, 8)))
    roofs: list[tuple[float, float]] = []
    for i in range(len(walls) - 1):
        y = top + (horizon - 0.05 - top) * i / (len(walls) - 1) + rng.uniform(-0.06, 0.06)
        roofs += [(float(walls[i]), float(y)), (float(walls[i + 1]), float(y + rng.uniform(-0.02, 0.03)))]
    _fill(canvas, [*roofs, (far, horizon + 0.04), (edge, horizon + 0.25)], _BUILDING)


def _trees(canvas: NDArray[np.int32], rng: np.random.Generator, horizon: float) -> None:
    height, width = canvas.shape
    noise = 11 * gaussian_filter(rng.standard_normal(canvas.shape), 4)
    noise += 1.2 * gaussian_filter(rng.standard_normal(canvas.shape), 2)
    y, x = np.mgrid[:height, :width]
    for _ in range(rng.integers(3, 6)):
        left = rng.random() < 0.5
        column = float(rng.uniform(0, 0.3) if left else rng.uniform(0.7, 1)) * (width - 1)
        row = float(rng.uniform(0.05, 0.45)) * (height - 1)
        wide, tall = rng.uniform(25, 110), rng.uniform(20, 70)
        depth = 1 - ((x - column) / wide) ** 2 - ((y - row) / tall) ** 2
        canvas[depth + 0.55 * noise > 0.15] = _TREE
        canvas[line(int(row), int(column), min(int(horizon * height) + 20, height - 1), int(column))] = _POLE


def _traffic(
    canvas: NDArray[np.int32], rng: np.random.Generator, on_ground: Callable[[float, float], tuple[float, float]]
) -> None:
    height, width = canvas.shape
    for _ in range(rng.integers(2, 7)):
        depth = float(rng.uniform(0.05, 0.6))
        x, y = on_ground(float(rng.choice([rng.uniform(-0.15, 0.25), rng.uniform(0.75, 1.15)])), depth)
        long = 12 + 90 * depth
        for up, tall, wide in ((0.3, 0.3, 0.6), (0.55, 0.3, 0.38)):
            where = ellipse(y * height - up * long, x * width, tall * long, wide * long, shape=canvas.shape)
            canvas[where] = _CAR
    for k in range(rng.integers(2, 7)):
        depth = float(rng.uniform(0.05, 0.5))
        x, y = on_ground(float(rng.choice([rng.uniform(-0.5, 0.0), rng.uniform(1, 1.5)])), depth)
        long = 12 + 70 * depth
        for up, tall, wide in ((0.5, 0.35, 0.13), (0.9, 0.1, 0.07), (0.15, 0.2, 0.09)):
            column = x * width + rng.normal(0, 0.03) * long
            where = ellipse(y * height - up * long, column, tall * long, max(wide * long, 1), shape=canvas.shape)
            canvas[where] = _PERSON if k % 3 else _CYCLIST


def _poles(canvas: NDArray[np.int32], rng: np.random.Generator, horizon: float) -> None:
    height, width = canvas.shape
    for _ in range(rng.integers(3, 8)):
        x, top = float(rng.uniform(0, 1)), float(rng.uniform(0.02, 0.35))
        bottom, wide, lean = horizon + rng.uniform(0, 0.25), rng.uniform(2.5, 6) / width, rng.normal(0, 0.01)
        _fill(canvas, [(x, top), (x + wide, top), (x + wide + lean, bottom), (x + lean, bottom)], _POLE)
        if rng.random() < 0.5:
            half = float(rng.uniform(4, 14)) / 1.5
            canvas[disk((top * height, x * width), half, shape=canvas.shape)] = _SIGN
