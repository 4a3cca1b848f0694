"""What some methods can do besides; asked for by what needs it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from tcl_core.methods.semantic_unit import UnitOptions

__all__ = ["DenseEmbedding"]


@runtime_checkable
class DenseEmbedding(Protocol):
    """A method whose pixels and prompts share an embedding space of dimension E.

    Its options are `tcl_core.methods.semantic_unit.UnitOptions`, and its similarities are those of
    ``in_units(self.pixels(features), self.options)``.
    """

    @property
    def options(self) -> UnitOptions:
        """Values of the method's options."""
        ...

    def pixels(self, features: Any) -> Tensor:
        """Unit embeddings of the pixels of B windows, float32 ``[B, E, h, w]``."""
        ...

    def rows(self, prompts: Any) -> Tensor:
        """Unit embeddings of P prompts, float32 ``[P, E]``; learned profiles may stand in their place."""
        ...

    def score(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Scores ``[B, P, h, w]`` in ``[0, 1]`` of pixels and rows."""
        ...
