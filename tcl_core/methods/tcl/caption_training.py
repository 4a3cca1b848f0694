"""What trainings of TCL's grounder with whole captions share: their batches, and the way from a batch to its losses."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from tcl_core.methods.tcl.distributed import gather, process_rank
from tcl_core.methods.tcl.grounded_training import ComparedMasks, GroundedTraining, ImageBatch

__all__ = ["CaptionBatch", "CaptionEmbeddings", "CaptionTraining", "matching_pairs"]


@dataclass(frozen=True)
class CaptionBatch(ImageBatch):
    """B matching images and captions of one process; N = B x processes captions take part in the contrasts.

    Attributes:
        texts: float32 ``[N, E]``, the embedded captions of all processes, L2-normalized; ``None`` until they are
            shared.
    """

    texts: Tensor | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class CaptionEmbeddings:
    """Embeddings of each sample alone, float32.

    Attributes:
        pixels: V ``[B, E, h, w]``, not normalized.
        texts: ``[B, E]``, L2-normalized.
    """

    pixels: Tensor
    texts: Tensor


_Batch = TypeVar("_Batch", bound=CaptionBatch)


class CaptionTraining(GroundedTraining):
    """A training of TCL's grounder with one whole caption for each image."""

    batch_class: ClassVar[type[CaptionBatch]]

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        """Stack images and captions of prepared samples."""
        return self.batch_class(
            torch.stack([sample["image"] for sample in samples]), torch.stack([sample["tokens"] for sample in samples])
        )

    @torch.no_grad()
    def with_texts(self, batch: _Batch) -> _Batch:
        """The batch with the embedded captions of all processes."""
        return _shared(batch, self.embedded_texts(batch.tokens))

    def own_texts(self, batch: CaptionBatch) -> Tensor:
        """The embedded captions float32 ``[B, E]`` of these images, L2-normalized.

        Raises:
            ValueError: there are not as many captions as images.
        """
        if len(batch.images) != len(batch.tokens):
            raise ValueError(f"there are {len(batch.images)} images, but {len(batch.tokens)} captions")
        if batch.texts is None:
            return self.embedded_texts(batch.tokens)
        return batch.texts[batch.offset : batch.offset + len(batch.images)]

    def objective(self, compared: Any, batch: Any) -> dict[str, Tensor]:
        """The objective of a shared batch, see `loss`."""
        with torch.autocast(device_type=compared.rows.device.type, enabled=False):
            return self.terms(compared, batch)

    def loss(self, embeddings: Any, batch: Any) -> dict[str, Tensor]:
        """The objective of a batch.

        With a process group each process passes its own B pairs; contrasts and masks then run over all N texts. The
        mean over the processes of each term is that of one process with all pairs: areas are compared with their prior
        after they were averaged over all processes, the other terms are means themselves.

        Returns:
            Scalars: the weighted terms of `terms`, their sum ``total``, and without gradient what is logged besides.
        """
        shared = _shared(batch, embeddings.texts) if batch.texts is None else batch
        return self.objective(self.compare(embeddings, shared), shared)

    def forward(self, *batch: Any, **named: Any) -> dict[str, Tensor]:
        """The losses, so that ``DistributedDataParallel`` can wrap the method; see `losses`."""
        return self.losses(*batch, **named)

    @abstractmethod
    def losses(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """`embed` and `loss` of one batch."""

    @abstractmethod
    def terms(self, compared: Any, batch: Any) -> dict[str, Tensor]:
        """The weighted terms of a shared batch, in float32."""


def matching_pairs(compared: ComparedMasks, offset: int) -> tuple[slice, Tensor]:
    """Which of all N texts belong to B images: as a slice, and as bool ``[B, N]``."""
    rows = compared.rows
    own = slice(offset, offset + len(rows))
    matching = torch.zeros_like(rows, dtype=torch.bool)
    matching[range(len(rows)), range(own.start, own.stop)] = True
    return own, matching


def _shared(batch: _Batch, texts: Tensor) -> _Batch:
    return dataclasses.replace(batch, texts=gather(texts), offset=process_rank() * len(texts))
