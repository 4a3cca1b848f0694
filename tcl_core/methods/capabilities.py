"""What some methods can do besides; asked for by what needs it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["DenseEmbedding"]


@runtime_checkable
class DenseEmbedding(Protocol):
    """A method whose pixels and prompts share an embedding space of dimension E."""

    def pixels(self, features: Any) -> Tensor:
        """Unit embeddings of the pixels of B windows, float32 ``[B, E, h, w]``."""
        ...

    def rows(self, prompts: Any) -> Tensor:
        """Unit embeddings of P prompts, float32 ``[P, E]``; learned profiles may stand in their place."""
        ...

    def score(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Scores ``[B, P, h, w]`` in ``[0, 1]`` of pixels and rows."""
        ...
