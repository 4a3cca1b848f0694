r"""Convolutions with fewer products (Winograd's minimal filtering, Lavin and Gray, arXiv 1509.09308).

A tile of :math:`m \times m` outputs of an :math:`r \times r` kernel takes :math:`(m + r - 1)^2` products for each pair
of channels instead of :math:`m^2 r^2`: 36 instead of 144 for a kernel of 3 and tiles of 4, 16 instead of 36 for a
kernel of 2 and tiles of 3. The products are those of matrices, which processors do best.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.devices import computes_in_float32

__all__ = ["saves_time", "winograd_conv2d"]

# With fewer channels the transformations of the tiles cost more than the products that they save, with fewer tiles
# that of the kernel does.
_FEWEST_CHANNELS = 128
_FEWEST_TILES = 144
_TILES = {2: 3, 3: 4}
# Finite points at which polynomials are evaluated, from small to large, because large ones round worse.
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0)
# Tiles whose products are made together: enough for a matrix product, few enough for the processor's cache.
_AT_ONCE = 196


class _Transforms(NamedTuple):
    """The matrices of ``Y = A^T [(G g G^T) * (B^T d B)] A``, each as a Kronecker product with itself.

    Attributes:
        rows: of ``A^T``, from products to a tile's outputs.
        kernel: of ``G``.
        data: of ``B^T``.
    """

    rows: Tensor
    kernel: Tensor
    data: Tensor


def saves_time(x: Tensor, weight: Tensor) -> bool:
    """Whether `winograd_conv2d` can take the place of a convolution with padding, and gains by it.

    Half precision has too few digits for the transformed tiles, and GPUs have such ways of their own.

    Args:
        x: float ``[B, C, H, W]``.
        weight: float ``[O, C, r, r]``.
    """
    device, (height, width), (*channels, _, size) = x.device.type, _sides(x)[-2:], _sides(weight)
    if device != "cpu" or x.dtype != torch.float32 or not computes_in_float32(device) or size not in _TILES:
        return False
    tiles = (height // _TILES[size]) * (width // _TILES[size])
    return min(channels) >= _FEWEST_CHANNELS and tiles >= _FEWEST_TILES


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` up to rounding, of about 1e-5 of the largest value.

    It is made for inference: tiles are worked off a few rows at a time, in memory that stays in the processor's cache.

    Args:
        x: float32 ``[B, C, H, W]``, best with channels last in memory.
        weight: float32 ``[O, C, r, r]`` with r 2 or 3.
        bias: float32 ``[O]``.

    Returns:
        float32 ``[B, O, H + 3 - r, W + 3 - r]`` with channels last in memory.
    """
    *channels, _, size = _sides(weight)
    side = _TILES[size]
    transforms = _transforms(side, size)
    kernels = (transforms.kernel @ weight.flatten(2).flatten(0, 1).T).unflatten(1, channels).transpose(1, 2)
    height, width = (length + 3 - size for length in _sides(x)[-2:])
    rows, columns = -(-height // side), -(-width // side)
    # Beyond the border as far as the last tile reaches.
    right, bottom = columns * side + 1 - width, rows * side + 1 - height
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, bottom))
    step = max(1, _AT_ONCE // columns)
    images = []
    for image in padded:
        strips = [
            _strip(image[top * side : min(top + step, rows) * side + size - 1], kernels, bias, transforms)
            for top in range(0, rows, step)
        ]
        images.append(torch.cat(strips)[:height, :width])
    return torch.stack(images).permute(0, 3, 1, 2)


def _sides(tensor: Tensor) -> list[int]:
    """Its shape in numbers, which a network that is traced gives as tensors."""
    return [int(length) for length in tensor.shape]


def _strip(image: Tensor, kernels: Tensor, bias: Tensor, transforms: _Transforms) -> Tensor:
    """A few rows of tiles ``[h, w, C]`` to their outputs ``[h', w', O]``."""
    side, tile = (math.isqrt(number) for number in _sides(transforms.rows))
    # [tile, tile, rows, columns, C]
    tiles = image.unfold(0, tile, side).unfold(1, tile, side).permute(3, 4, 0, 1, 2)
    rows, columns, channels = _sides(tiles)[2:]
    data = (transforms.data @ tiles.reshape(tile * tile, -1)).view(tile * tile, -1, channels)
    products = torch.bmm(data, kernels)
    out = (transforms.rows @ products.flatten(1)).view(side, side, rows, columns, -1) + bias
    return out.permute(2, 0, 3, 1, 4).reshape(rows * side, columns * side, -1)


@cache
def _transforms(side: int, size: int) -> _Transforms:
    """The matrices of tiles of ``side`` and kernels of ``size`` (Toom and Cook's, transposed).

    The product of two polynomials of ``side`` and ``size`` coefficients is found from its values at ``side + size - 2``
    points and its leading coefficient; the filter is the transpose of that.
    """
    count = side + size - 1
    points = np.array(_POINTS[: count - 1])

    def values(length: int) -> NDArray[np.float64]:
        at_points = np.vander(points, length, increasing=True)
        return np.vstack([at_points, np.eye(length)[-1:]])

    rows, kernel = values(side).T, values(size)
    data = np.linalg.inv(values(count)).T
    # Values of the product are scaled at each point so that the data's matrix has small whole numbers.
    scale = np.array([np.prod([p - q for q in points if q != p]) for p in points] + [1.0])
    data, kernel = data * scale[:, None], kernel / scale[:, None]
    return _Transforms(*(torch.from_numpy(np.kron(matrix, matrix)).float() for matrix in (rows, kernel, data)))
