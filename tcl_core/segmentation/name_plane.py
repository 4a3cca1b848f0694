"""The background's names as one plane, and which of them is the strongest at each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.segmentation.argmax import enlarge
from tcl_core.types import Unlabeled

__all__ = ["NamePlane"]


@dataclass(frozen=True)
class NamePlane:
    """The maximum over background names.

    Attributes:
        names: the names.
        best: float32 ``[1, h, w]``, their highest similarity.
        winner: int32 ``[h, w]``, the place of the name that has it.
    """

    names: tuple[str, ...]
    best: Tensor
    winner: Tensor

    @classmethod
    def of(cls, names: Sequence[str], planes: Tensor) -> NamePlane:
        """The maximum over planes float32 ``[P, h, w]`` of names.

        Example:
            >>> plane = NamePlane.of(["sky", "sea"], torch.tensor([[[0.1, 0.5]], [[0.4, 0.2]]]))
            >>> plane.winner.tolist()
            [[1, 0]]
        """
        best, winner = planes.max(dim=0, keepdim=True)
        return cls(tuple(names), best, winner[0].to(torch.int32))

    def joined(self, other: NamePlane) -> NamePlane:
        """The maximum over the names of both."""
        stronger = other.best > self.best
        winner = torch.where(stronger[0], other.winner + len(self.names), self.winner)
        return NamePlane(self.names + other.names, torch.where(stronger, other.best, self.best), winner)

    def unlabeled(self, score: Tensor, floor: float, label_map: NDArray[np.int32]) -> Unlabeled:
        """Which names won the pixels without a label.

        Args:
            score: float ``[h, w]``, the finished scores of the names.
            floor: height of the background plane.
            label_map: int32 ``[H, W]`` of the whole decision.
        """
        size = (int(label_map.shape[0]), int(label_map.shape[1]))
        won = (enlarge(score, size) > floor).view(size).cpu().numpy() & (label_map == 0)
        near = F.interpolate(self.winner[None, None].float(), size=size, mode="nearest")[0, 0]
        places = np.where(won, near.to(torch.int32).cpu().numpy() + 1, 0)
        kept = [number for number in np.flatnonzero(np.bincount(places.ravel())).tolist() if number]
        table = np.zeros(len(self.names) + 1, np.int32)
        table[kept] = np.arange(1, len(kept) + 1)
        return Unlabeled(tuple(self.names[number - 1] for number in kept), table[places])
