"""Stage one: a small CLIP, trained from scratch on images and captions with the contrastive loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.methods.tcl.losses import info_nce
from tcl_core.methods.trainable import BatchTrainable
from tcl_core.towers.clip_blocks import run_block
from tcl_core.towers.clip_text import text_at_ends
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import Tokenizer
from training.config import TrainPhase
from training.cpu import Precision
from training.playground.data import Captions, Images, ImageSet
from training.playground.schedule import Schedule

__all__ = [
    "ClipBatch",
    "ClipPhase",
    "ClipTraining",
    "View",
    "build_clip",
    "clip_batches",
    "clip_losses",
    "embed_captions",
    "whiten",
    "whiten_towers",
]

_MAX_SCALE = 100.0
_LOCAL_SHARPNESS = 10.0


@dataclass(frozen=True)
class View:
    """How images are shown in a step.

    Attributes:
        images: what is shown.
        batch: images per step.
        collage: images are shown as collages of this many by this many, see ``clip_losses``.
    """

    images: ImageSet
    batch: int
    collage: int


@dataclass(frozen=True)
class ClipPhase:
    """A part of the pre-training.

    Attributes:
        name: of the phase.
        views: the steps take them in turn.
        captions: captions per image and step; each makes a contrastive loss of its own.
        brief: share of captions that name one object and say nothing else.
        balanced: whether negatives are weighted, see ``training.playground.negatives``.
        local_weight: weight of the local contrastive loss, see ``clip_losses``.
        schedule: optimizer settings.
    """

    name: str
    views: tuple[View, ...]
    captions: int
    brief: float
    balanced: bool
    local_weight: float
    schedule: Schedule

    def train_phase(self, precision: Precision) -> TrainPhase:
        """What the training engine does; its batch is the mean over the views."""
        batch = round(sum(view.batch for view in self.views) / len(self.views))
        return self.schedule.phase(self.name, [("clip", self.schedule.steps)], batch, precision)


@dataclass(frozen=True)
class ClipBatch:
    """What a step sees, see `clip_losses`."""

    images: Tensor
    captions: Sequence[Tensor]
    local_weight: float = 0.0
    collage: int = 1
    shift: tuple[int, int] = (0, 0)
    negatives: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class ClipEmbeddings:
    """Unit embeddings of images ``[B, E]``, their patches ``[B, hw, E]`` and all captions ``[captions * B, E]``."""

    images: Tensor
    patches: Tensor
    texts: Tensor


def build_clip(config: dict[str, Any], seed: int) -> open_clip.CLIP:
    """A CLIP with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return open_clip.CLIP(**config)


def _tiles(tokens: Tensor, grid: tuple[int, int], collage: int) -> Tensor:
    """Patch tokens ``[B, hw, C]`` of collages of n images, as those of the images, ``[B * n, hw / n, C]``."""
    batch, _, channels = tokens.shape
    rows, columns = grid[0] // collage, grid[1] // collage
    tiled = tokens.reshape(batch, collage, rows, collage, columns, channels).transpose(2, 3)
    return tiled.reshape(batch * collage**2, rows * columns, channels)


def _collages(images: Tensor, collage: int) -> Tensor:
    """Images ``[B, 3, H, W]`` laid out in squares of n, ``[B / n, 3, c H, c W]``."""
    batch, channels, height, width = images.shape
    tiled = images.reshape(batch // collage**2, collage, collage, channels, height, width)
    return tiled.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, collage * height, collage * width)


def _embed_images(model: open_clip.CLIP, images: Tensor, collage: int, shift: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Unit embeddings of images of any size, ``[B, E]``, and of their patches, ``[B, hw, E]``."""
    visual = model.visual
    sides = visual.patch_size
    images = _collages(images, collage).roll((shift[0] * sides[0], shift[1] * sides[1]), dims=(2, 3))
    grid = (images.shape[-2] // sides[0], images.shape[-1] // sides[1])
    position = visual.positional_embedding
    if grid != tuple(visual.grid_size):
        table = position[1:].unflatten(0, tuple(visual.grid_size)).permute(2, 0, 1)[None]
        table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        position = torch.cat([position[:1], table[0].flatten(1).T])
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1) + position
    tokens = visual.ln_pre(tokens)
    for block in visual.transformer.resblocks:
        tokens = run_block(block, tokens)
    tokens = visual.ln_post(tokens)[:, 1:]
    tokens = tokens.unflatten(1, grid).roll((-shift[0], -shift[1]), dims=(1, 2)).flatten(1, 2)
    tokens = _tiles(tokens, grid, collage)
    return F.normalize(tokens.mean(dim=1) @ visual.proj, dim=-1), F.normalize(tokens @ visual.proj, dim=-1)


def embed_captions(model: open_clip.CLIP, captions: Tensor) -> Tensor:
    """Unit embeddings of captions, the same as ``model.encode_text`` gives, at a third of its work.

    Brief captions repeat within a batch, and most are far shorter than the longest. No token sees a later one, so
    that what follows a caption's end can be left out; the shorter and the longer half are embedded apart.

    Args:
        model: a CLIP whose text tower is causal and takes the embedding at the last token.
        captions: token ids int64 ``[N, L]``.

    Returns:
        float ``[N, E]``.
    """
    unique, place = captions.unique(dim=0, return_inverse=True)
    ends = unique.argmax(dim=1)
    order = ends.argsort(stable=True)
    parts = []
    for chosen in order.chunk(2):
        parts.append(text_at_ends(model, unique[chosen], ends[chosen]) @ model.text_projection)
    return F.normalize(torch.cat(parts)[order.argsort()[place]], dim=-1)


def _local_similarity(dense: Tensor, text: Tensor) -> Tensor:
    """How well the best-matching part of each image matches each text.

    Args:
        dense: unit ``[B, P, E]``.
        text: unit ``[N, E]``.

    Returns:
        float ``[B, N]``: the cosines of the patches, averaged with weights that are a softmax of themselves.
    """
    cosine = dense @ text.T
    return (cosine * (_LOCAL_SHARPNESS * cosine).softmax(dim=1)).sum(dim=1)


def clip_losses(
    model: open_clip.CLIP,
    images: Tensor,
    captions: Sequence[Tensor],
    local_weight: float = 0.0,
    collage: int = 1,
    shift: tuple[int, int] = (0, 0),
    negatives: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020), averaged over the captions of each image.

    The local term contrasts each caption with the patches that match it best: a caption mentions only some of a
    scene, and nothing in the global term says that what it mentions should be found where it is. Patches meet
    captions as in PACL (arXiv 2212.04994), but are those of the ordinary forward pass.

    In a collage, several captioned images are shown as one, and each caption has to be found among the patches of
    its own image; the neighbors are negatives like any other image. What a patch says must then come from
    nearby. A shift of the collage, around its edges, keeps the positions from giving the seams away.

    Args:
        model: the CLIP; its image tower pools the mean of its patch tokens.
        images: float32 ``[B, 3, H, W]``, normalized.
        captions: token ids int64 ``[B, L]``, one tensor per caption of an image.
        local_weight: weight of the local term; 0 leaves it out.
        collage: images on each side of a collage; its square divides B. 1 shows the images one by one.
        shift: of the collage, in patches down and to the right.
        negatives: float32 ``[B, B]`` for each of ``captions``, images by captions: how often each pair counts, from
            0 to 1, and 1 for those that match; ``None`` counts each once.

    Returns:
        ``total``, the terms ``global`` and ``local``, and the contrastive ``scale``, scalars.
    """
    training = ClipTraining(model)
    batch = ClipBatch(images, captions, local_weight, collage, shift, negatives)
    return training.loss(training.embed(batch), batch)


class ClipTraining(nn.Module, BatchTrainable):
    """A CLIP as what the training engine trains.

    Args:
        model: the CLIP.
    """

    stages = ("clip",)

    def __init__(self, model: open_clip.CLIP) -> None:
        super().__init__()
        self.model = model

    def trainable(self, stage: str) -> list[nn.Parameter]:
        """All parameters."""
        self.requires_grad_(True)
        return list(self.parameters())

    def learned_state_dict(self) -> dict[str, Tensor]:
        """Everything, by open_clip's names."""
        return self.model.state_dict()

    def load_learned_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take everything."""
        self.model.load_state_dict(dict(state))

    def embed(self, batch: ClipBatch) -> ClipEmbeddings:
        """Embed images, patches and captions."""
        images, patches = _embed_images(self.model, batch.images, batch.collage, batch.shift)
        return ClipEmbeddings(images, patches, embed_captions(self.model, torch.cat(list(batch.captions))))

    def loss(self, embeddings: ClipEmbeddings, batch: ClipBatch) -> dict[str, Tensor]:
        """The losses, in float32, see `clip_losses`."""
        with torch.autocast(embeddings.images.device.type, enabled=False):
            return _contrast(self.model, embeddings, batch)


def _contrast(model: open_clip.CLIP, embeddings: ClipEmbeddings, batch: ClipBatch) -> dict[str, Tensor]:
    image, patches = embeddings.images.float(), embeddings.patches.float()
    scale = model.logit_scale.clamp(max=math.log(_MAX_SCALE)).exp()
    global_terms, local_terms = [], []
    for number, part in enumerate(embeddings.texts.float().chunk(len(batch.captions))):
        weights = None if batch.negatives is None else (batch.negatives[number], batch.negatives[number].T)
        cosine = image @ part.T
        global_terms.append(info_nce(cosine, cosine.T, scale, weights=weights))
        if batch.local_weight > 0:
            cosine = _local_similarity(patches, part)
            local_terms.append(info_nce(cosine, cosine.T, scale, weights=weights))
    total = global_term = torch.stack(global_terms).mean()
    losses = {"global": global_term, "scale": scale}
    if local_terms:
        losses["local"] = torch.stack(local_terms).mean()
        total = total + batch.local_weight * losses["local"]
    return losses | {"total": total}


def whiten(features: Tensor, size: int, seed: int, floor: float = 1e-3) -> Tensor:
    """A projection whose outputs are centered and decorrelated on ``features``.

    At random initialization all pooled features of a transformer point in nearly the same direction, so that every
    image meets every caption with the same cosine and the contrastive loss hardly moves for the first hundreds of
    steps. Removing that direction and equalizing the rest lets it learn from the first step.

    Args:
        features: float ``[N, C]``.
        size: number of outputs E, at most C.
        seed: of the rotation that spreads the components over the outputs.
        floor: components weaker than this share of the strongest variance are not blown up further.

    Returns:
        float32 ``[C, E]``.
    """
    features = features.double()
    mean = features.mean(dim=0)
    direction = mean / mean.norm()
    centered = features - mean
    centered = centered - (centered @ direction)[:, None] * direction
    variance, axes = torch.linalg.eigh(centered.T @ centered / len(centered))
    variance, axes = variance.flip(0)[:size], axes.flip(1)[:, :size]
    axes = axes - direction[:, None] * (direction @ axes)
    axes = axes / (variance + floor * variance[0]).sqrt() * (variance > 1e-9 * variance[0])
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    return (axes @ rotation).float()


@torch.no_grad()
def whiten_towers(model: open_clip.CLIP, images: Tensor, captions: Tensor, seed: int) -> None:
    """Set both projections from features of the untrained towers."""
    visual = model.visual
    visual.proj.data = torch.eye(visual.proj.shape[0])
    clip = FrozenClip(model)
    visual.proj.data = whiten(torch.cat([clip.encode_image(part) for part in images.split(250)]), _dim(model), seed)
    model.text_projection.data = torch.eye(model.text_projection.shape[0])
    text = torch.cat([clip.encode_text(part) for part in captions.split(500)])
    model.text_projection.data = whiten(text, _dim(model), seed + 1)
    model.requires_grad_(True)
    model.train()


def _dim(model: open_clip.CLIP) -> int:
    return int(model.text_projection.shape[1])


def clip_batches(
    phase: ClipPhase,
    images: Callable[[ImageSet], Images],
    tokenizer: Tokenizer,
    templates: Sequence[str],
    seed: int,
    patch: int,
) -> Callable[[int], ClipBatch]:
    """What makes the batch of a step of a phase.

    Args:
        phase: that the step is of.
        images: draws a set, when a step first needs it.
        tokenizer: turns captions into ids.
        templates: that captions use now and then.
        seed: of batches, captions and shifts.
        patch: side of a patch in pixels.
    """
    how = Captions(tuple(templates), phase.captions, phase.brief, phase.balanced)

    def make(step: int) -> ClipBatch:
        rng = np.random.default_rng([seed, step])
        view = phase.views[step % len(phase.views)]
        batch = images(view.images).batch(rng, view.batch, tokenizer, how)
        side = view.collage * view.images.size // patch
        down, right = rng.integers(0, side, 2) if view.collage > 1 else (0, 0)
        return ClipBatch(
            batch.images, batch.captions, phase.local_weight, view.collage, (int(down), int(right)), batch.negatives
        )

    return make
