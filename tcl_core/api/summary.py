"""The share of each label in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcl_core.types import Region
from tcl_core.vocabulary import Vocabulary

__all__ = ["LabelShare", "label_shares"]


@dataclass(frozen=True)
class LabelShare:
    """The regions of one label in an image, summarized.

    Attributes:
        name: name of the label.
        regions: number of regions.
        share: share of the image's pixels, in ``[0, 1]``.
        score: mean score over the label's pixels, in ``[0, 1]``; ``None`` if it has no pixels.
    """

    name: str
    regions: int
    share: float
    score: float | None


def label_shares(vocabulary: Vocabulary, regions: Sequence[Region], pixels: int) -> list[LabelShare]:
    """One entry for each label of the vocabulary, in the same order.

    Args:
        vocabulary: vocabulary of the regions.
        regions: regions of one image.
        pixels: height times width of the image, at least 1.

    Examples:
        >>> label_shares(Vocabulary.from_labels(["chair"]), [], 100)
        [LabelShare(name='chair', regions=0, share=0.0, score=None)]
    """
    shares = []
    for label_id, name in enumerate(vocabulary.names, start=1):
        own = [region for region in regions if region.label_id == label_id]
        area = sum(region.area for region in own)
        score = sum(region.score * region.area for region in own) / area if area else None
        shares.append(LabelShare(name, len(own), area / pixels, score))
    return shares
