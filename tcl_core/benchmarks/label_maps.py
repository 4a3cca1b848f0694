"""Label maps to measure polygons on: blobs, shapes, rings, lines, corner-touching fields and photographs.

All are drawn from a seed; the photographs are those inside the scikit-image package, so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from skimage.draw import disk, ellipse, line, polygon
from skimage.filters import gaussian

__all__ = ["KINDS", "label_maps"]

_PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "camera.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png",
    "motorcycle_left.png", "coins.png", "moon.png", "retina.jpg", "horse.png",
)  # fmt: skip


def _size(rng: np.random.Generator) -> tuple[int, int]:
    height, width = rng.integers(96, 257, 2)
    return int(height), int(width)


def blobs(rng: np.random.Generator) -> NDArray[np.int32]:
    """Arg-max of several smooth random fields, like a segmentation's score maps; scale from 2 to 16 pixels."""
    height, width = _size(rng)
    labels = int(rng.integers(2, 7))
    scale = float(np.exp(rng.uniform(np.log(2), np.log(16))))
    fields = np.stack([gaussian(rng.standard_normal((height, width)), scale) for _ in range(labels)])
    return np.asarray(fields.argmax(axis=0), dtype=np.int32)


def shapes(rng: np.random.Generator) -> NDArray[np.int32]:
    """Overlapping ellipses and polygons on background, like objects that hide each other."""
    height, width = _size(rng)
    canvas = np.zeros((height, width), dtype=np.int32)
    for k in range(int(rng.integers(3, 13))):
        center = rng.uniform(0, 1, 2) * (height, width)
        if rng.random() < 0.5:
            tall, wide = rng.uniform(6, 50, 2)
            turn = float(rng.uniform(0, np.pi))
            where = ellipse(center[0], center[1], tall, wide, shape=canvas.shape, rotation=turn)
        else:
            corners = int(rng.integers(3, 9))
            angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
            reach = rng.uniform(10, 60, corners)
            where = polygon(center[0] + reach * np.sin(angle), center[1] + reach * np.cos(angle), canvas.shape)
        canvas[where] = k % 6 + 1
    return canvas


def rings(rng: np.random.Generator) -> NDArray[np.int32]:
    """Concentric and scattered rings, some only a pixel or two thick, with islands inside."""
    height, width = _size(rng)
    canvas = np.zeros((height, width), dtype=np.int32)
    for k in range(int(rng.integers(2, 7))):
        center = rng.uniform(0, 1, 2) * (height, width)
        radius = float(rng.uniform(8, 60))
        while radius > 1:
            canvas[disk(center, radius, shape=canvas.shape)] = k % 5 + 1
            radius -= float(rng.uniform(1, 12))
            if radius > 1:
                canvas[disk(center, radius, shape=canvas.shape)] = 0
            radius -= float(rng.uniform(1, 16))
    return canvas


def lines(rng: np.random.Generator) -> NDArray[np.int32]:
    """Lines one pixel wide in all directions, crossing each other, over a few discs."""
    height, width = _size(rng)
    canvas = np.zeros((height, width), dtype=np.int32)
    for k in range(3):
        canvas[disk(rng.uniform(0, 1, 2) * (height, width), float(rng.uniform(8, 40)), shape=canvas.shape)] = k + 1
    for k in range(int(rng.integers(3, 15))):
        row, column = rng.integers(0, height, 2), rng.integers(0, width, 2)
        if rng.random() < 0.4:  # axis-parallel: one connected line instead of a staircase of pieces
            column[1] = column[0]
        if rng.random() < 0.2:
            row[1], column[1] = row[0], rng.integers(0, width)
        canvas[line(int(row[0]), int(column[0]), int(row[1]), int(column[1]))] = k % 6 + 1
    return canvas


def touching(rng: np.random.Generator) -> NDArray[np.int32]:
    """Checkerboards of 1 to 24 pixels, upright or turned, two or more labels, so that regions meet at corners."""
    height, width = (int(v) // 2 for v in _size(rng))
    cell = int(rng.choice([1, 2, 3, 5, 8, 12, 16, 24]))
    angle = float(rng.choice([0.0, 0.0, rng.uniform(0, np.pi / 2)]))
    row, column = np.mgrid[:height, :width]
    u = np.floor((column * np.cos(angle) + row * np.sin(angle)) / cell)
    v = np.floor((row * np.cos(angle) - column * np.sin(angle)) / cell)
    labels = int(rng.integers(2, 5))
    return np.asarray((u + v * int(rng.integers(1, labels))) % labels, dtype=np.int32)


@lru_cache(maxsize=16)
def _photograph(name: str) -> NDArray[np.float64]:
    with Image.open(Path(skimage.data.__file__).parent / name) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def photographs(rng: np.random.Generator) -> NDArray[np.int32]:
    """A crop of a photograph, blurred by 0 to 4 pixels, its nearest of 3 to 8 colors drawn from itself."""
    image = _photograph(str(rng.choice(_PHOTOGRAPHS)))
    height, width = (min(v, n) for v, n in zip(_size(rng), image.shape[:2], strict=True))
    top = int(rng.integers(0, image.shape[0] - height + 1))
    left = int(rng.integers(0, image.shape[1] - width + 1))
    crop = image[top : top + height, left : left + width]
    blur = float(rng.choice([0.0, 1.0, 2.0, 3.0, 4.0]))
    crop = gaussian(crop, blur, channel_axis=-1) if blur else crop
    colors = crop.reshape(-1, 3)[rng.integers(0, height * width, int(rng.integers(3, 9)))]
    distance = ((crop[:, :, None] - colors) ** 2).sum(axis=-1)
    return np.asarray(distance.argmin(axis=-1), dtype=np.int32)


KINDS: dict[str, Callable[[np.random.Generator], NDArray[np.int32]]] = {
    "blobs": blobs,
    "shapes": shapes,
    "rings": rings,
    "lines": lines,
    "touching": touching,
    "photographs": photographs,
}


def label_maps(count: int, seed: int = 0) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Draw label maps, the kinds in turn.

    Args:
        count: how many.
        seed: two runs with one seed give the same maps; map ``i`` does not depend on ``count``.

    Yields:
        The kind's name and an int32 label map ``[H, W]``.
    """
    names = list(KINDS)
    for i in range(count):
        name = names[i % len(names)]
        yield name, KINDS[name](np.random.default_rng([seed, i]))
