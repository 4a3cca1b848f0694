"""What a method that can be trained does besides inference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

__all__ = ["BatchTrainable", "Trainable"]


class BatchTrainable(ABC):
    """Training in stages on batches that somebody makes; see `Trainable` for batches of samples.

    A step is cut in pieces, so that a batch that does not fit into memory can be worked through part by part: `embed`
    looks at one sample at a time, `compare` at one sample and at what `share` found out about all, and `objective` at
    what is left of all samples. A method whose embeddings are small needs `embed` and `loss` alone.

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
    def embed(self, batch: Any) -> Any:
        """Embeddings of a batch's samples, each from its own sample alone."""

    def share(self, batch: Any, generator: torch.Generator | None = None) -> Any:
        """Complete a batch with all that is random, and with what its samples are compared with, without gradient.

        Called in every process at the same time. The result does not depend on how the samples of a step are spread
        over processes, and may be split.

        Args:
            batch: of the step; by default it is complete.
            generator: of the step, in the same state in every process; ``None`` for torch's default one.
        """
        return batch

    def split(self, batch: Any, parts: int) -> list[Any]:
        """Cut a shared batch into parts of the same size, in their order.

        Args:
            batch: of `share`; by default a mapping, whose tensors are cut along their first axis.
            parts: number of parts, a divisor of the number of samples.
        """
        pieces = {
            name: value.chunk(parts) if isinstance(value, Tensor) else [value] * parts for name, value in batch.items()
        }
        return [{name: piece[number] for name, piece in pieces.items()} for number in range(parts)]

    def precompute(self, batch: Any) -> Any:
        """Complete a part with what its samples' embeddings take from frozen weights, without gradient.

        Called where `embed` will be called twice for the same part, to spare it the second time.

        Args:
            batch: a part of a shared batch; by default nothing is kept.
        """
        return batch

    def compare(self, embeddings: Any, batch: Any) -> Any:
        """What the objective needs of embeddings: tensors whose first axis is that of the samples, by name.

        Args:
            embeddings: of `embed`.
            batch: a shared one, or a part of it; by default the embeddings are all that is needed.
        """
        return embeddings

    def objective(self, compared: Any, batch: Any) -> Mapping[str, Tensor]:
        """The scalars of a step from what `compare` found for all samples, see `loss`.

        Args:
            compared: of all samples of this process.
            batch: the whole one, shared.
        """
        return self.loss(compared, batch)

    def compile_training(self) -> None:  # noqa: B027
        """Let ``torch.compile`` have the parts of the training step that gain by it; nothing by default."""

    def keep_activations(self) -> None:  # noqa: B027
        """Keep for the backward pass what is computed again by default: more memory, less time; same gradients."""

    @abstractmethod
    def loss(self, embeddings: Any, batch: Any) -> Mapping[str, Tensor]:
        """The scalars of a step from all embeddings; ``total`` is minimized, all are logged."""


class Trainable(BatchTrainable):
    """Training of a method on images and captions, which are prepared one by one and put together into batches."""

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:  # noqa: B027
        """Refuse settings that no CLIP can mend, before one is downloaded; by default none is.

        Args:
            settings: of the method, as a recipe has them.

        Raises:
            SettingsError: a setting is unknown, out of range, or needs what is not installed.
        """

    def accepts(self, caption: str) -> bool:
        """Whether a sample with this caption can be prepared; others are left out. By default every one can."""
        return True

    def why_refused(self, caption: str) -> str:
        """Why `accepts` refuses a caption, in a clause."""
        return "the method cannot learn from it"

    def needed_files(self) -> tuple[str, ...]:
        """Names of downloads that preparing samples needs and that are not there; none by default."""
        return ()

    def use_files(self, files: Mapping[str, Path]) -> None:  # noqa: B027
        """Take the downloads of `needed_files`, by their names."""

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
