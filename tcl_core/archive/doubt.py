"""Whether an archive shows a word at all: an absent word has nearest images too, and a seed in each of them."""

from __future__ import annotations

from torch import Tensor

from tcl_core.archive.base import Base
from tcl_core.archive.store import ArchiveFolder
from tcl_core.methods.reco import Fitting
from tcl_core.methods.training_free.prompts import embed_in_templates
from tcl_core.vocabulary.common_names import common_names
from tcl_core.vocabulary.templates import get_templates

__all__ = ["MOST_BETTER", "better_names", "doubtful_words"]

MOST_BETTER = 0.07
"""A word is doubtful if more than this share of other names fit its images better than the word does.

Cosines mean something else in every CLIP, and a share does not. ``python -m benchmarks.archive_doubt`` measures it.
"""

_FEWEST_NAMES = 16


def doubtful_words(base: Base, archive: ArchiveFolder, fitting: Fitting, templates: str) -> dict[str, str]:
    """For words that the archive may not show, the reason in a clause.

    Args:
        base: the CLIP.
        archive: the images.
        fitting: what was retrieved.
        templates: name of the template set, of which the first is used: more would take minutes.
    """
    template = get_templates(templates)[:1]
    known = base.model.background_names or tuple(entry.name for entry in common_names())
    others = [name for name in known if name not in fitting.names and not base.method.unknown_words(name)]
    names = [*fitting.names, *others]
    if len(names) <= _FEWEST_NAMES:
        return {}
    texts = embed_in_templates(base.method.clip, names, template).cpu()
    found = {}
    for place, word in enumerate(fitting.words):
        images = archive.embeddings([image.name for image in word.images])
        share = better_names(images, texts, place)
        if share > MOST_BETTER:
            found[word.name] = (
                f"the archive may not show it, because {share:.0%} of {len(names) - 1} other names fit the images that "
                f"were retrieved for it better (last similarity {word.last_similarity:.3f}); look at them with --page, "
                "add images, or leave the word out"
            )
    return found


def better_names(images: Tensor, texts: Tensor, place: int) -> float:
    """Mean share of the other names that fit images better than the name at a place does.

    Args:
        images: float32 ``[k, E]``, L2-normalized.
        texts: float32 ``[N, E]``, L2-normalized, N at least 2.
        place: of the name, from 0.

    Example:
        >>> import torch
        >>> better_names(torch.eye(2), torch.eye(2), 0)
        0.5
    """
    cosines = images @ texts.T
    return float((cosines > cosines[:, place : place + 1]).float().sum(dim=1).mean() / (len(texts) - 1))
