"""What a method that can be trained does besides inference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from torch.utils.data import default_collate

__all__ = ["Trainable"]


class Trainable(ABC):
    """Training of a method, in stages.

    A step is cut in two, so that the embeddings of a batch that does not fit into memory can be made part by part:
    `embed` looks at one sample at a time, `loss` compares them all.

    Attributes:
        stages: names of the training stages, in their order.
    """

    stages: ClassVar[tuple[str, ...]]

    @abstractmethod
    def trainable(self, stage: str) -> list[nn.Parameter]:
        """Freeze and unfreeze parameters for a stage; returns those that are trained.

        Raises:
            SettingsError: the stage is unknown.
        """

    @abstractmethod
    def prepare(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """What a sample (an image and its caption) brings into a batch; runs where data is loaded.

        Args:
            sample: ``image`` (float ``[3, H, W]``, normalized) and ``caption`` (a text).
            rng: of this sample.
        """

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        """Put prepared samples together into a batch, as `embed` and `loss` take it.

        Args:
            samples: of `prepare`, at least one; by default a mapping of their stacked values.
        """
        return default_collate(list(samples))

    @abstractmethod
    def embed(self, batch: Any) -> Any:
        """Embeddings of a batch's samples, each from its own sample alone."""

    @abstractmethod
    def loss(self, embeddings: Any, batch: Any) -> Mapping[str, Tensor]:
        """The scalars of a step from all embeddings; ``total`` is minimized, all are logged."""
