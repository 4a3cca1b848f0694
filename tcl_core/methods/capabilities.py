"""What some methods can do besides; asked for by what needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tcl_core.methods.semantic_unit import UnitOptions

__all__ = ["DenseEmbedding", "Exportable", "Fitted", "Segments"]


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


@runtime_checkable
class Exportable(Protocol):
    """A method whose encoder is a network of tensors alone; `tcl_core.methods.exportable.ExportableMethod` is one."""

    def network(self) -> nn.Module:
        """From padded windows float32 ``[B, 3, H, W]`` to a tuple of tensors ``[B, ...]``."""
        ...

    def encode_through(self, run: Callable[[Tensor], tuple[Tensor, ...]], windows: Tensor) -> Any:
        """The method's `encode` with ``run`` in the place of its network."""
        ...


@runtime_checkable
class Segments(Protocol):
    """A method whose windows fall into groups before any prompt is seen; an annotator can name them."""

    def segments(self, features: Any) -> Tensor:
        """How much the pixels of B windows belong to each of G groups, float32 ``[B, G, H, W]`` at their size."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """A method that first looks for its words in an archive of unlabeled images."""

    def fit(self, archive: Any, names: Sequence[str], templates: Sequence[str], **settings: Any) -> Any:
        """References of words; the method says of what kind the archive and they are."""
        ...

    def with_references(self, fitting: Any) -> Any:
        """The same method with other references."""
        ...
