"""Background stuff as textures: photographs shipped with scikit-image, and noise shaped like the rest.

Every texture is drawn once as a large bank; a scene then takes a random crop of it with a little color jitter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from skimage import data
from skimage.transform import resize

from tcl_core.playground.world import STUFF_NAMES

__all__ = ["BANK_SIZE", "crop_texture", "texture_bank"]

BANK_SIZE = 512
"""Side of a texture bank in pixels."""

Texture = NDArray[np.float32]


def _noise(rng: np.random.Generator, slope: float, stretch: tuple[float, float] = (1.0, 1.0)) -> Texture:
    """Periodic noise whose amplitude falls as ``frequency ** -slope``; zero mean, unit deviation."""
    fy = np.fft.fftfreq(BANK_SIZE)[:, None] * stretch[0]
    fx = np.fft.rfftfreq(BANK_SIZE)[None, :] * stretch[1]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    phase = rng.uniform(0, 2 * np.pi, radius.shape)
    field = np.fft.irfft2(radius**-slope * np.exp(1j * phase), s=(BANK_SIZE, BANK_SIZE))
    field -= field.mean()
    return (field / field.std()).astype(np.float32)


def _tint(field: Texture, low: tuple[int, int, int], high: tuple[int, int, int], contrast: float = 0.35) -> Texture:
    """Map a zero-mean field to colors between two ends."""
    weight = np.clip(0.5 + contrast * field, 0, 1)[..., None]
    return (np.asarray(low, np.float32) * (1 - weight) + np.asarray(high, np.float32) * weight).astype(np.float32)


def _photograph(name: str, scale: float) -> Texture:
    """A gray photograph as a zero-mean, unit-deviation field, shrunk so that its grain fits the scenes."""
    image = getattr(data, name)().astype(np.float32)
    side = int(round(image.shape[0] * scale))
    small = resize(image, (side, side), anti_aliasing=True, preserve_range=True).astype(np.float32)
    repeats = -(-BANK_SIZE // side)
    tiled = np.tile(np.block([[small, small[:, ::-1]], [small[::-1], small[::-1, ::-1]]]), (repeats, repeats))
    field = tiled[:BANK_SIZE, :BANK_SIZE]
    return (field - field.mean()) / field.std()


def _planks(rng: np.random.Generator) -> Texture:
    rows = np.arange(BANK_SIZE)
    board = rows // 16
    shade = rng.normal(0, 0.6, board.max() + 1).astype(np.float32)[board][:, None]
    seam = np.where(rows % 16 == 0, -2.5, 0.0).astype(np.float32)[:, None]
    return 0.6 * _noise(rng, 1.0, (4.0, 0.3)) + shade + seam


def _tiles(rng: np.random.Generator) -> Texture:
    index = np.arange(BANK_SIZE)
    shade = rng.normal(0, 0.35, (BANK_SIZE // 16, BANK_SIZE // 16)).astype(np.float32)
    field = np.kron(shade, np.ones((16, 16), np.float32)) + 0.6
    joint = (index % 16 < 2)[:, None] | (index % 16 < 2)[None, :]
    field[joint] = -2.0
    return field


def _straw(rng: np.random.Generator) -> Texture:
    field = np.maximum(_noise(rng, 0.6, (1.0, 0.12)), _noise(rng, 0.6, (0.12, 1.0)))
    return (field - field.mean()) / field.std()


def _veins(rng: np.random.Generator) -> Texture:
    return 1.2 - 3.2 * np.exp(-np.abs(_noise(rng, 1.8)) * 14) + 0.1 * _noise(rng, 1.0)


_MAKERS: dict[str, Callable[[np.random.Generator], Texture]] = {
    "grass": lambda rng: _tint(_photograph("grass", 0.4), (26, 78, 18), (128, 190, 64), 0.25),
    "brick": lambda rng: _tint(_photograph("brick", 0.5), (120, 50, 38), (206, 128, 104), 0.3),
    "gravel": lambda rng: _tint(_photograph("gravel", 0.4), (64, 62, 60), (190, 186, 178), 0.25),
    "sand": lambda rng: _tint(_noise(rng, 0.5), (204, 176, 120), (240, 218, 168), 0.25),
    "water": lambda rng: _tint(_noise(rng, 1.3, (3.0, 0.6)), (16, 74, 132), (96, 176, 214), 0.3),
    "wood": lambda rng: _tint(_planks(rng), (112, 66, 28), (196, 140, 84), 0.25),
    "sky": lambda rng: _tint(_noise(rng, 1.9), (118, 178, 240), (236, 244, 252), 0.3),
    "snow": lambda rng: _tint(_noise(rng, 1.0), (222, 228, 240), (252, 252, 255), 0.35),
    "tiles": lambda rng: _tint(_tiles(rng), (96, 120, 118), (214, 226, 220), 0.3),
    "soil": lambda rng: _tint(_noise(rng, 0.8), (52, 32, 20), (108, 74, 48), 0.3),
    "straw": lambda rng: _tint(_straw(rng), (146, 108, 30), (232, 200, 98), 0.3),
    "marble": lambda rng: _tint(_veins(rng), (112, 104, 122), (226, 218, 230), 0.35),
}


@cache
def texture_bank(name: str) -> NDArray[np.uint8]:
    """The bank of one stuff.

    Args:
        name: a name from ``STUFF_NAMES``.

    Returns:
        uint8 ``[BANK_SIZE, BANK_SIZE, 3]`` sRGB, always the same for a name.
    """
    rng = np.random.default_rng(1000 + STUFF_NAMES.index(name))
    return np.clip(_MAKERS[name](rng), 0, 255).astype(np.uint8)


def crop_texture(
    rng: np.random.Generator, name: str, height: int, width: int, zoom: float = 1.0
) -> NDArray[np.float32]:
    """A random crop of a stuff with jittered brightness and a slight color cast.

    Args:
        rng: source of randomness.
        name: a name from ``STUFF_NAMES``.
        height: height in pixels.
        width: width in pixels.
        zoom: how many times larger than in the bank the grain is.

    Returns:
        float32 ``[height, width, 3]`` in ``[0, 255]``.
    """
    bank = texture_bank(name)
    shape = (height, width) if zoom == 1 else (math.ceil(height / zoom), math.ceil(width / zoom))
    rows = (int(rng.integers(BANK_SIZE)) + np.arange(shape[0])) % BANK_SIZE
    columns = (int(rng.integers(BANK_SIZE)) + np.arange(shape[1])) % BANK_SIZE
    if rng.random() < 0.5:
        columns = columns[::-1]
    patch = bank[np.ix_(rows, columns)].astype(np.float32)
    if zoom != 1:
        patch = resize(patch, (height, width), order=1, preserve_range=True).astype(np.float32)
    gain = rng.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05, 3)
    return np.clip(patch * gain.astype(np.float32), 0, 255)
