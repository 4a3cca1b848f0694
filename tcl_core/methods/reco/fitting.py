"""From an archive of unlabeled images to references of words: retrieve, co-segment, eliminate contexts.

Contexts (tree, sky, ...) are fitted first, one after another, each without the pixels that earlier ones claim. Then
every other word is fitted without the pixels that the contexts claim.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import SettingsError
from tcl_core.methods.reco.cosegmentation import BLOCK_BYTES, cosegment, nearest_images, pixel_weights
from tcl_core.methods.training_free.prompts import embed_in_templates

if TYPE_CHECKING:
    from tcl_core.methods.reco.model import ReCo, ReCoFeatures

__all__ = [
    "CONTEXTS",
    "Archive",
    "Fitting",
    "MemoryArchive",
    "Retrieved",
    "WordFit",
    "fit_references",
    "images_per_word",
]

CONTEXTS = ("tree", "sky", "building", "road", "person")
"""The paper's context categories, in its order."""

_MOST_IMAGES = 50
_FEWEST_IMAGES = 5
_CACHE_BYTES = 512 << 20
_BATCH = 8


class Archive(Protocol):
    """Unlabeled images, embedded for retrieval."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def nearest(self, text: Tensor, k: int, without: Collection[str]) -> list[tuple[str, float]]:
        """Names and cosines of the k images nearest to a text.

        Args:
            text: float32 ``[E]``, L2-normalized.
            k: how many; fewer where there are no more.
            without: names of images that are left out.
        """
        ...

    def pixels(self, name: str) -> Tensor:
        """The image of a name, float32 ``[3, S, S]``, normalized; the same S for all."""
        ...


@dataclass(frozen=True)
class MemoryArchive:
    """An archive of a few images in memory.

    Attributes:
        images: normalized, float32 ``[3, S, S]``, by name.
        embeddings: float32 ``[N, E]``, in the same order.
    """

    images: Mapping[str, Tensor]
    embeddings: Tensor

    @classmethod
    def of(cls, method: ReCo, images: Mapping[str, Tensor]) -> MemoryArchive:
        """Embed images whose sides are multiples of the CLIP's patch size."""
        return cls(images, method.embed_images(torch.stack(list(images.values()))))

    def __len__(self) -> int:
        return len(self.images)

    def nearest(self, text: Tensor, k: int, without: Collection[str]) -> list[tuple[str, float]]:
        """See `Archive`."""
        names = list(self.images)
        kept = [place for place, name in enumerate(names) if name not in without]
        values, places = nearest_images(self.embeddings[kept], text, k)
        return [(names[kept[place]], value) for place, value in zip(places.tolist(), values.tolist(), strict=True)]

    def pixels(self, name: str) -> Tensor:
        """See `Archive`."""
        return self.images[name]


@dataclass(frozen=True)
class Retrieved:
    """An image that was retrieved for a word.

    Attributes:
        name: of the image in the archive.
        similarity: cosine of image and text.
        seed: row and column of the seed's center as shares of the height and width of the square that was looked at.
        score: how well the other images answer the seed.
    """

    name: str
    similarity: float
    seed: tuple[float, float]
    score: float


@dataclass(frozen=True)
class WordFit:
    """How the reference of a word was found.

    Attributes:
        name: the word.
        context: whether it is a context that nobody asked for as a label.
        images: that were retrieved, the nearest first.
    """

    name: str
    context: bool
    images: tuple[Retrieved, ...]

    @property
    def last_similarity(self) -> float:
        """Cosine of the text and the last image that was retrieved."""
        return self.images[-1].similarity


@dataclass(frozen=True)
class Fitting:
    """References, and where they come from.

    Attributes:
        names: N words, contexts first.
        references: float32 ``[N, C]``, L2-normalized.
        words: of each word.
    """

    names: tuple[str, ...]
    references: Tensor
    words: tuple[WordFit, ...]


def images_per_word(archive: int) -> int:
    """How many images are retrieved for a word where nobody says: a tenth of the archive, at least 5 and at most 50.

    Example:
        >>> images_per_word(2000), images_per_word(120), images_per_word(30), images_per_word(3)
        (50, 12, 5, 3)
    """
    return min(archive, max(_FEWEST_IMAGES, min(_MOST_IMAGES, archive // 10)))


@torch.no_grad()
def fit_references(
    method: ReCo,
    archive: Archive,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    images: int | None = None,
    contexts: Sequence[str] = CONTEXTS,
    without: Mapping[str, Collection[str]] | None = None,
    upstream_slice: bool = False,
    block_bytes: int = BLOCK_BYTES,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Fitting:
    """Find a reference for each word in the images of an archive.

    Args:
        method: whose towers look at the images.
        archive: embedded by the same CLIP.
        names: words to find, at least one.
        templates: T texts, each with one ``{}`` for the word.
        images: retrieved for each word; by default `images_per_word`.
        contexts: words whose pixels are left out; those among ``names`` and those that the CLIP does not know are not
            used.
        without: for each word, names of images that are not to be used.
        upstream_slice: see `tcl_core.methods.reco.cosegmentation.pixel_scores`.
        block_bytes: see there.
        on_progress: called with the word that is begun, the number of words done and of all; what it raises ends the
            work and is passed on.

    Raises:
        SettingsError: no image is left for a word.
    """
    targets = tuple(dict.fromkeys(names))
    others = tuple(dict.fromkeys(name for name in contexts if name not in targets and not method.unknown_words(name)))
    everything = (*others, *targets)
    texts = embed_in_templates(method.clip, everything, templates)
    count = images_per_word(len(archive)) if images is None else images
    cache: ByteBoundedCache[str, ReCoFeatures] = ByteBoundedCache(_CACHE_BYTES, lambda features: features.nbytes)
    found = method.references.new_zeros(0, method.reference_width)
    words: list[WordFit] = []
    for done, (name, text) in enumerate(zip(everything, texts, strict=True)):
        if on_progress is not None:
            on_progress(name, done, len(everything))
        hits = archive.nearest(text, count, (without or {}).get(name, ()))
        if not hits:
            raise SettingsError(f"prompt {name!r}: no image of the archive is left; strike fewer images out.")
        looked_at = _looked_at(method, archive, [hit for hit, _ in hits], cache)
        weights = pixel_weights(looked_at.image, looked_at.dense, text, found[: min(done, len(others))])
        joint = cosegment(looked_at.image, weights, upstream_slice=upstream_slice, block_bytes=block_bytes)
        found = torch.cat([found, joint.reference[None]])
        height, width = looked_at.image.shape[2:]
        retrieved = [
            Retrieved(hit, value, ((seed // width + 0.5) / height, (seed % width + 0.5) / width), score)
            for (hit, value), seed, score in zip(hits, joint.seeds.tolist(), joint.scores.tolist(), strict=True)
        ]
        words.append(WordFit(name, done < len(others), tuple(retrieved)))
    return Fitting(everything, found, tuple(words))


def _looked_at(
    method: ReCo, archive: Archive, names: Sequence[str], cache: ByteBoundedCache[str, ReCoFeatures]
) -> ReCoFeatures:
    """Features of images, from the cache where they were looked at for another word."""
    device = method.references.device
    found = {name: cache.get(name) for name in names}
    missing = [name for name, features in found.items() if features is None]
    for first in range(0, len(missing), _BATCH):
        group = missing[first : first + _BATCH]
        encoded = method.encode(torch.stack([archive.pixels(name) for name in group]).to(device))
        for place, name in enumerate(group):
            # Joined, because a slice of the batch would keep all of it.
            entry = type(encoded).join([encoded[place : place + 1]])
            found[name] = entry
            cache.put(name, entry)
    parts = [features for name in names if (features := found[name]) is not None]
    return type(parts[0]).join(parts)
