"""The sliding window: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tcl_core.devices import to_device

__all__ = [
    "background_plane",
    "merge_windows",
    "split_windows",
    "window_grid",
    "window_origins",
]


def window_grid(length: int, window: int, stride: int) -> list[int]:
    """Starts of the windows along one axis; the last window is shifted inwards to end at the border.

    Args:
        length: of the axis, in pixels.
        window: length of a window; an axis shorter than this gets one window of the axis' length.
        stride: distance between windows, at most ``window``.

    Returns:
        Strictly rising starts; the first is 0.

    Raises:
        ValueError: a number is not positive, or the stride would leave gaps.

    Example:
        >>> window_grid(154, window=96, stride=48)
        [0, 48, 58]
    """
    if min(length, window, stride) < 1 or stride > window:
        raise ValueError(f"need 1 <= stride <= window and length >= 1, got {length=}, {window=}, {stride=}")
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, length - window), 0) for index in range(count)]


def window_origins(size: tuple[int, int], window: int, stride: int) -> list[tuple[int, int]]:
    """Top-left corners ``(y, x)`` of all windows over an image of ``size`` (height, width), in reading order."""
    return [(y, x) for y in window_grid(size[0], window, stride) for x in window_grid(size[1], window, stride)]


def split_windows(image: Tensor, window: int, stride: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Cut an image into overlapping windows.

    Args:
        image: ``[C, H, W]``.
        window: side of a window in pixels; a window is smaller where the image is.
        stride: distance between windows.

    Returns:
        ``[n, C, min(window, H), min(window, W)]`` and the n top-left corners ``(y, x)``.
    """
    height, width = int(image.shape[-2]), int(image.shape[-1])
    origins = window_origins((height, width), window, stride)
    rows, columns = min(window, height), min(window, width)
    return torch.stack([image[:, y : y + rows, x : x + columns] for y, x in origins]), origins


def merge_windows(windows: Iterable[Tensor], origins: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Average score maps of overlapping windows: their sum divided by the number of windows at each pixel.

    Args:
        windows: score maps ``[K, h, w]``, one per origin; an iterator is consumed one by one, so that only the
            sum stays in memory.
        origins: top-left corner ``(y, x)`` of each window.
        size: height and width of the image.

    Returns:
        ``[K, H, W]`` in the windows' dtype.

    Raises:
        ValueError: there are more or fewer windows than origins, K differs, or a pixel is covered by no window.
    """
    total: Tensor | None = None
    covered = torch.zeros(size)
    for scores, (y, x) in zip(windows, origins, strict=True):
        if total is None:
            total = scores.new_zeros(scores.shape[0], *size)
        if scores.shape[0] != total.shape[0]:
            raise ValueError(f"a window has {scores.shape[0]} score maps, expected {total.shape[0]}")
        height, width = scores.shape[-2:]
        total[:, y : y + height, x : x + width] += scores
        covered[y : y + height, x : x + width] += 1
    if total is None or bool((covered == 0).any()):
        raise ValueError(f"the windows do not cover the whole image of {size[0]}x{size[1]} pixels")
    return total.div_(to_device(covered.to(total.dtype), total.device))


def background_plane(scores: Tensor, value: float) -> Tensor:
    """Put a constant plane in front of the score maps; it is class 0 of the arg-max.

    Args:
        scores: ``[..., K, H, W]``.
        value: score of the background, in ``[0, 1]``.

    Returns:
        ``[..., K + 1, H, W]``.
    """
    plane = scores.new_full((*scores.shape[:-3], 1, *scores.shape[-2:]), value)
    return torch.cat([plane, scores], dim=-3)
