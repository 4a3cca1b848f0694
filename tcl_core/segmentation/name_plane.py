"""The background's names as one plane, and which of them is the strongest at each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.segmentation.enlarging import Enlarger, nearest_places, tiles
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
        """Which names won the pixels without a label, found once somebody asks.

        Args:
            score: float ``[h, w]``, the finished scores of the names.
            floor: height of the background plane.
            label_map: int32 ``[H, W]`` of the whole decision.
        """
        return Unlabeled.later(partial(self._won, score, floor, label_map))

    def _won(
        self, score: Tensor, floor: float, label_map: NDArray[np.int32]
    ) -> tuple[tuple[str, ...], NDArray[np.integer]]:
        """The names that won anything, and where."""
        size = (int(label_map.shape[0]), int(label_map.shape[1]))
        source = (int(score.shape[0]), int(score.shape[1]))
        enlarger = Enlarger.of(source, size, score.device)
        rows, columns = (nearest_places(*lengths) for lengths in zip(self.winner.shape, size, strict=True))
        # Few bits, because there are as many of these as there are pixels.
        kind = np.min_scalar_type(len(self.names))
        places, numbers = np.zeros(size, kind), (self.winner.cpu().numpy() + 1).astype(kind)
        seen = np.zeros(len(self.names) + 1, dtype=bool)
        for tile in tiles(size, score.device):
            won = (enlarger.tile(score, tile) > floor).cpu().numpy() & (label_map[tile] == 0)
            np.copyto(places[tile], numbers[np.ix_(rows[tile[0]], columns[tile[1]])], where=won)
            seen[places[tile].ravel()] = True
        kept = np.flatnonzero(seen[1:]) + 1
        table = np.zeros(len(seen), kind)
        table[kept] = np.arange(1, len(kept) + 1)
        for tile in tiles(size, torch.device("cpu")):
            places[tile] = table[places[tile]]
        return tuple(self.names[number - 1] for number in kept.tolist()), places
