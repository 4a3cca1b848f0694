"""Score maps at the size of the image, a tile at a time, so that a large image needs no plane of its own size.

Every value depends on four others alone, whatever tile it is made in: tiles are equal to the whole to the last bit, and
to ``torch.nn.functional.interpolate`` (bilinear, ``align_corners=False``) wherever it sums in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Enlarger", "nearest_places", "tiles"]

Tile = tuple[slice, slice]
"""Rows and columns of an image."""

# Images of fewer pixels are one tile, and PyTorch resizes them at once.
_ONE_TILE = 1 << 20
# Few enough pixels for the processor's cache, enough that calls cost little; a GPU wants many at once.
_TILE_ROWS, _TILE_COLUMNS = 128, 512
_PIXELS_ELSEWHERE = 1 << 24


def tiles(size: tuple[int, int], device: torch.device, shape: tuple[int, int] | None = None) -> Iterator[Tile]:
    """Tiles that cover an image once, in reading order.

    Args:
        size: height and width of the image.
        device: where they are worked on.
        shape: most rows and columns of a tile; by default what suits the device.

    Example:
        >>> [(rows.stop, columns.stop) for rows, columns in tiles((3, 5), torch.device("cpu"), (2, 4))]
        [(2, 4), (2, 5), (3, 4), (3, 5)]
    """
    height, width = size
    if shape is None and device.type == "cpu":
        shape = size if height * width <= _ONE_TILE else (_TILE_ROWS, _TILE_COLUMNS)
    elif shape is None:
        shape = (max(1, _PIXELS_ELSEWHERE // max(width, 1)), max(width, 1))
    for top in range(0, height, shape[0]):
        for left in range(0, width, shape[1]):
            yield slice(top, min(top + shape[0], height)), slice(left, min(left + shape[1], width))


@dataclass(frozen=True)
class _Axis:
    """Between which two pixels of a map each pixel of the image lies along one axis, and how near the second.

    Attributes:
        first: int64 ``[n]``.
        second: int64 ``[n]``, the next one, or the last.
        share: float32 ``[n]``, the weight of the second; the first has the rest.
        ends: the same ``first`` and ``second`` where no device has to be waited for.
    """

    first: Tensor
    second: Tensor
    share: Tensor
    ends: tuple[NDArray[np.int64], NDArray[np.int64]]

    @classmethod
    def of(cls, source: int, length: int, device: torch.device) -> _Axis:
        """Places of ``length`` pixels among ``source`` ones."""
        if source == length:
            first = second = np.arange(length)
            share = np.zeros(length, dtype=np.float32)
        else:
            # In float32, as PyTorch counts.
            scale = np.float32(source) / np.float32(length)
            place = scale * (np.arange(length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
            place = np.maximum(place, np.float32(0))
            first = np.minimum(place.astype(np.int64), source - 1)
            second = np.minimum(first + 1, source - 1)
            share = np.clip(place - first.astype(np.float32), 0, 1)
        tensors = [torch.from_numpy(values).to(device) for values in (first, second, share)]
        return cls(tensors[0], tensors[1], tensors[2], (first, second))

    def needed(self, part: slice) -> slice:
        """The pixels of the map that some pixels of the image lie between."""
        return slice(int(self.ends[0][part.start]), int(self.ends[1][part.stop - 1]) + 1)


@dataclass(frozen=True)
class Enlarger:
    """Resizes maps of one size to that of an image.

    Attributes:
        source: height and width of the maps.
        size: height and width of the image.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    _rows: _Axis
    _columns: _Axis

    @classmethod
    def of(cls, source: tuple[int, int], size: tuple[int, int], device: torch.device) -> Enlarger:
        """For maps on a device."""
        rows, columns = (_Axis.of(*lengths, device) for lengths in zip(source, size, strict=True))
        return cls(source, size, rows, columns)

    def needed(self, tile: Tile) -> Tile:
        """The part of a map that a tile of the image is made of."""
        return self._rows.needed(tile[0]), self._columns.needed(tile[1])

    def tile(self, score: Tensor, tile: Tile) -> Tensor:
        """A tile of a map float32 ``[h, w]``, enlarged; float32 ``[rows, columns]`` of its own."""
        rows, columns = tile
        if (rows, columns) == (slice(0, self.size[0]), slice(0, self.size[1])):
            whole = F.interpolate(score[None, None].float(), size=self.size, mode="bilinear", align_corners=False)
            return whole[0, 0]
        above, beside = self.needed(tile)
        across = score[above].float()
        if self.source[1] != self.size[1]:
            part = across[:, beside]
            share = self._columns.share[columns]
            left = part.index_select(1, self._columns.first[columns] - beside.start)
            right = part.index_select(1, self._columns.second[columns] - beside.start)
            # The second product is rounded and the first is not, where the processor can: interpolate() does so too.
            across = torch.addcmul(right.mul_(share), left, 1 - share)
        else:
            across = across[:, columns]
        if self.source[0] == self.size[0]:
            return across.clone() if self.source[1] == self.size[1] else across
        share = self._rows.share[rows, None]
        upper = across.index_select(0, self._rows.first[rows] - above.start)
        lower = across.index_select(0, self._rows.second[rows] - above.start)
        return torch.addcmul(lower.mul_(share), upper, 1 - share, out=lower)

    def whole(self, score: Tensor) -> Tensor:
        """A map float32 ``[h, w]``, enlarged: float32 ``[H, W]``."""
        first, *others = tiles(self.size, score.device)
        if not others:
            return self.tile(score, first)
        result = torch.empty(self.size, dtype=torch.float32, device=score.device)
        for tile in (first, *others):
            result[tile] = self.tile(score, tile)
        return result


def nearest_places(source: int, length: int) -> NDArray[np.int64]:
    """The pixel of a map that is nearest to each of ``length`` pixels of the image along one axis, int64 ``[length]``.

    As ``torch.nn.functional.interpolate`` has it (``mode="nearest"``).

    Example:
        >>> nearest_places(2, 5).tolist()
        [0, 0, 0, 1, 1]
    """
    scale = np.float32(source) / np.float32(length)
    return np.minimum((np.arange(length, dtype=np.float32) * scale).astype(np.int64), source - 1)
