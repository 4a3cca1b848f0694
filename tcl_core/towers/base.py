"""What methods need of a CLIP-like pair of towers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from tcl_core.towers.tokenizer import Tokenizer

__all__ = ["PositionRule", "Tower"]

PositionRule = Callable[[Tensor, tuple[int, int]], Tensor]
"""From a trained grid of position embeddings ``[1, C, h, w]`` to one of another size (rows, columns)."""


@runtime_checkable
class Tower(Protocol):
    """An image tower and a text tower with a joint embedding space, frozen."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """From texts to token ids; ``None`` where only token ids can be embedded."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        ...

    @property
    def depth(self) -> int:
        """Number of blocks of the image tower."""
        ...

    @property
    def width(self) -> int:
        """Channels C of the image tower."""
        ...

    @property
    def embed_dim(self) -> int:
        """Dimension E of the joint space."""
        ...

    def tokens(self, image: Tensor, after: Sequence[int], positions: PositionRule = ...) -> list[Tensor]:
        """Tokens ``[B, 1 + hw, C]`` after each of the numbers of blocks in ``after`` (rising), in one pass."""
        ...

    def query_key_value(self, tokens: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, heads, N, C / heads]`` of the attention of a block, from the tokens before."""
        ...

    def project_dense(self, features: Tensor) -> Tensor:
        """Features ``[B, C, h, w]`` in the joint space, ``[B, E, h, w]``."""
        ...

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids int64 ``[N, L]`` in the joint space, ``[N, E]``, not normalized."""
        ...
