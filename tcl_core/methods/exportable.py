"""Methods whose encoder is a network of tensors alone, so that other programs than PyTorch's can run it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from tcl_core.methods.base import Features, Method

__all__ = ["ExportableMethod", "Run", "WindowNetwork"]

Run = Callable[[Tensor], tuple[Tensor, ...]]
"""From windows float32 ``[B, 3, H, W]``, padded to whole patches, to the tensors of their features."""


class ExportableMethod(Method):
    """A method that separates its network from what is done before and after it; see `Exportable`."""

    @abstractmethod
    def window_tensors(self, padded: Tensor) -> tuple[Tensor, ...]:
        """What `encode` spends its time on, without a look at any value of the tensors.

        Args:
            padded: float32 ``[B, 3, H, W]``, normalized; H and W multiples of the patch size.

        Returns:
            Tensors ``[B, ...]``.
        """

    @abstractmethod
    def encode_through(self, run: Run, windows: Tensor) -> Features:
        """`encode` with another way of running the network.

        Args:
            run: gives what `window_tensors` gives.
            windows: float32 ``[B, 3, H, W]``, normalized; any H and W.
        """

    def network(self) -> nn.Module:
        """`window_tensors` as a module."""
        return WindowNetwork(self).eval()

    @torch.no_grad()
    def encode(self, windows: Tensor) -> Any:
        """Embed windows float32 ``[B, 3, H, W]``, zero-padded to whole patches inside."""
        return self.encode_through(self.window_tensors, windows)


class WindowNetwork(nn.Module):
    """The network of a method, which shares the method's weights.

    Args:
        method: whose.
    """

    def __init__(self, method: ExportableMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, padded: Tensor) -> tuple[Tensor, ...]:
        """See `ExportableMethod.window_tensors`."""
        return cast(ExportableMethod, self.method).window_tensors(padded)
