"""A map of whole numbers as the runs of its rows, which are far fewer than its pixels.

A label map of 200 megapixels holds some hundred thousand runs, so that what is known of each pixel takes megabytes
instead of gigabytes. Where pixels are needed they are made of the runs, a strip of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Pairs", "RunMap", "strips"]

_STRIP_PIXELS = 1 << 18
_KEPT_PIXELS = 1 << 22  # of maps so small that looking a pixel up is quicker than counting runs
_BLOCK = 256  # pixels whose count of runs is kept in full, the bytes inside by differences

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Runs, runs that they touch, and along how many pixels."""

# How many of the bits of a byte are set, from its first up to and with each of the eight.
_SET = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).cumsum(axis=1).astype(np.uint8)


def strips(height: int, width: int, pixels: int = _STRIP_PIXELS) -> Iterator[slice]:
    """Rows of an image in strips of about so many pixels.

    Example:
        >>> [(rows.start, rows.stop) for rows in strips(5, 4, pixels=8)]
        [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, pixels // max(width, 1))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


@dataclass(frozen=True)
class RunMap:
    """A map of whole numbers ``[H, W]``; a run never goes on in the next row.

    Attributes:
        size: height and width in pixels.
        starts: int64 ``[R]``, the first pixel of each run, ``row * width + column``, ascending.
        values: int64 ``[R]``.
    """

    size: tuple[int, int]
    starts: NDArray[np.int64]
    values: NDArray[np.int64]

    @classmethod
    def of(cls, pixels: NDArray[np.integer], strip: int = _STRIP_PIXELS) -> RunMap:
        """The runs of a map.

        Args:
            pixels: whole numbers ``[H, W]``.
            strip: pixels looked at together; it changes nothing but the memory.
        """
        height, width = pixels.shape
        starts, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for rows in strips(height, width, strip):
            part = pixels[rows]
            begins = np.ones(part.shape, dtype=bool)
            np.not_equal(part[:, 1:], part[:, :-1], out=begins[:, 1:])
            starts.append(np.flatnonzero(begins) + rows.start * width)
            values.append(part[begins].astype(np.int64))
        return cls((int(height), int(width)), np.concatenate(starts), np.concatenate(values))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Pixels of each run, int64 ``[R]``."""
        return np.diff(self.starts, append=self.size[0] * self.size[1])

    def rows(self, rows: slice) -> NDArray[np.int64]:
        """The map's pixels in some rows, int64 ``[rows, W]``."""
        width = self.size[1]
        first, last = np.searchsorted(self.starts, [rows.start * width, rows.stop * width])
        return np.repeat(self.values[first:last], self.lengths[first:last]).reshape(rows.stop - rows.start, width)

    def window(self, rows: slice, columns: slice) -> NDArray[np.int64]:
        """The map's pixels in a box, int64 ``[rows, columns]``."""
        width = self.size[1]
        row = np.arange(rows.start, rows.stop)[:, None] * width
        first = np.searchsorted(self.starts, row.ravel() + columns.start, side="right") - 1
        last = np.searchsorted(self.starts, row.ravel() + columns.stop)
        count = last - first
        run = np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count)
        left = np.maximum(self.starts[run], np.repeat(row.ravel() + columns.start, count))
        right = np.minimum(self.starts[run] + self.lengths[run], np.repeat(row.ravel() + columns.stop, count))
        return np.repeat(self.values[run], right - left).reshape(len(row), columns.stop - columns.start)

    def pixels(self) -> NDArray[np.int64]:
        """The whole map, int64 ``[H, W]``."""
        return np.repeat(self.values, self.lengths).reshape(self.size)

    def with_values(self, values: NDArray[np.int64]) -> RunMap:
        """Other values for the runs, int64 ``[R]``; neighbors of equal value become one run."""
        kept = np.ones(len(values), dtype=bool)
        kept[1:] = (values[1:] != values[:-1]) | (self.starts[1:] % max(self.size[1], 1) == 0)
        return RunMap(self.size, self.starts[kept], values[kept])

    def __getitem__(self, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Values at pixels, each ``row * width + column``."""
        if self.size[0] * self.size[1] <= _KEPT_PIXELS:
            return self._pixels[pixels]
        counts, inner, bits = self._ranks
        byte = pixels >> 3
        run = counts[pixels // _BLOCK] + inner[byte] + _SET[bits[byte], pixels & 7]
        return self.values[run - 1]

    @cached_property
    def _pixels(self) -> NDArray[np.int64]:
        return self.pixels().ravel()

    @cached_property
    def _ranks(self) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
        """For the run of any pixel: runs that begin before its block, in the block before its byte, and the bits."""
        total = self.size[0] * self.size[1]
        bits = np.zeros(-(-max(total, 1) // _BLOCK) * _BLOCK // 8, dtype=np.uint8)
        byte, bit = self.starts >> 3, np.uint8(128) >> (self.starts & 7).astype(np.uint8)
        if len(byte):
            first = np.flatnonzero(np.append(True, byte[1:] != byte[:-1]))
            bits[byte[first]] = np.bitwise_or.reduceat(bit, first)
        of_byte = _SET[bits, 7].reshape(-1, _BLOCK // 8)
        inner = np.cumsum(of_byte, axis=1, dtype=np.uint16) - of_byte
        of_block = of_byte.sum(axis=1, dtype=np.int64)
        # A block of runs of one pixel each has fewer than 256 before its last byte.
        return np.cumsum(of_block) - of_block, inner.astype(np.uint8).ravel(), bits

    def below(self, strip: int = _STRIP_PIXELS) -> Pairs:
        """Runs of neighboring rows that touch, in the order of their first common pixel.

        Args:
            strip: pixels looked at together; it changes nothing but the memory.
        """
        height, width = self.size
        pairs = []
        for rows in strips(height - 1, width, strip):
            edges = np.array([rows.start, rows.start + 1, rows.stop, rows.stop + 1]) * width
            first, second, third, fourth = np.searchsorted(self.starts, edges).tolist()
            upper, lower = (np.zeros((rows.stop - rows.start) * width, dtype=bool) for _ in range(2))
            upper[self.starts[first:third] - edges[0]] = True
            lower[self.starts[second:fourth] - edges[1]] = True
            # Where either row begins a run, a touch begins.
            at = np.flatnonzero(upper | lower)
            lengths = np.diff(at, append=len(upper))
            pairs.append((np.cumsum(upper[at]) - 1 + first, np.cumsum(lower[at]) - 1 + second, lengths))
        if not pairs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        one, other, lengths = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return one, other, lengths

    def beside(self) -> Pairs:
        """Runs that follow each other in a row, which touch along one pixel."""
        one = np.flatnonzero(self.starts[1:] % max(self.size[1], 1))
        return one, one + 1, np.ones(len(one), dtype=np.int64)

    def pieces(self, below: Pairs | None = None) -> NDArray[np.int64]:
        """The 4-connected piece of equal value of each run, numbered from 0 in reading order; int64 ``[R]``.

        Args:
            below: of this map, if it is known already.
        """
        one, other, _ = self.below() if below is None else below
        same = self.values[one] == self.values[other]
        count, joined = len(self.starts), other[same]
        # Pairs come in the order of their first runs, as the rows of such a matrix are stored.
        begins = np.concatenate([[0], np.cumsum(np.bincount(one[same], minlength=count))])
        graph = csr_array((np.ones(len(joined)), joined, begins), shape=(count, count))
        pieces, piece = connected_components(graph, directed=False)
        first = np.empty(pieces, dtype=np.int64)
        # Of several the last is kept, which is each piece's first.
        first[piece[::-1]] = np.arange(count)[::-1]
        rank = np.empty(pieces, dtype=np.int64)
        rank[np.argsort(first)] = np.arange(pieces)
        return rank[piece]

    def faces(self) -> RunMap:
        """The same map with the number of its 4-connected piece at each pixel, from 1 in reading order."""
        return RunMap(self.size, self.starts, self.pieces() + 1) if len(self.starts) else self
