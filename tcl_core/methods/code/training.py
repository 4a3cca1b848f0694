"""Training of CoDe: its stages, and its losses on images and captions (section 3 of the paper)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.methods.code.batch import Batch, Compared, Embeddings, pair_noise
from tcl_core.methods.code.config import CoDeConfig
from tcl_core.methods.code.nouns import MOST_NAMED, find_nouns, missing_data, noun_ids, use_data, word_labels
from tcl_core.methods.code.objective import pair_weights, weighted_terms
from tcl_core.methods.code.text import PromptedTexts, TextDecoder, encode_embedded, text_ends, word_states
from tcl_core.methods.tcl.distributed import gather, process_rank, world_size
from tcl_core.methods.tcl.grounded_training import GroundedTraining
from tcl_core.methods.tcl.losses import gumbel_sigmoid, unit, variations
from tcl_core.methods.tcl.mask_terms import mask_terms_in_parts
from tcl_core.vocabulary.templates import get_templates

__all__ = ["CoDeTraining"]

_BACKGROUND_WEIGHT = 0.5


class CoDeTraining(GroundedTraining):
    """The training half of :class:`tcl_core.methods.code.CoDe`."""

    config: CoDeConfig
    clip_text_encoder: PromptedTexts
    text_decoder: TextDecoder
    learnable_image_bg: nn.Parameter
    bg_text: nn.Parameter
    text_mask_w: nn.Parameter
    text_mask_b: nn.Parameter
    tcli_loss: nn.Module
    tclf_loss: nn.Module
    hcl_loss: nn.Module

    # -- samples -------------------------------------------------------------------------------------------------

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """Refuse settings that are unknown or out of range, and NLTK where it is not installed."""
        super().check_settings(settings)
        tagger = settings.get("tagger", CoDeConfig.tagger)
        if tagger != "nltk" or not missing_data():
            find_nouns("a cat on a sofa", tagger)

    def needed_files(self) -> tuple[str, ...]:
        """NLTK's data, where NLTK is the tagger, is installed, and lacks them."""
        return missing_data() if self.config.tagger == "nltk" else ()

    def use_files(self, files: Mapping[str, Path]) -> None:
        """Let NLTK find its downloaded data."""
        use_data(files)

    def accepts(self, caption: str) -> bool:
        """Whether a caption names as many things as are chosen from each."""
        return len(self._named(caption)) >= self.config.nouns

    def why_refused(self, caption: str) -> str:
        """What a caption names, and what the settings ask for."""
        named = ", ".join(self._named(caption)) or "nothing"
        ignored = f" that ignored_nouns does not leave out ({self.config.ignored_nouns})" * bool(
            self.config.ignored_nouns
        )
        return f"the setting nouns asks for {self.config.nouns} things{ignored}, and it names {named}"

    def prepare(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Choose nouns of a caption and a template for each, and say which of its words are which noun.

        Args:
            sample: ``image`` (float ``[3, H, W]``, normalized) and ``caption`` (a text).
            rng: of this sample.

        Raises:
            SettingsError: the tower has no tokenizer, the caption names too little, or nouns cannot be found.
        """
        tokenizer, count = self.clip.tokenizer, self.config.nouns
        if tokenizer is None:
            raise SettingsError("The CLIP has no tokenizer, so captions cannot be embedded; give it one.")
        caption = sample["caption"]
        found = self._named(caption)
        if len(found) < count:
            raise SettingsError(f"The caption {caption!r} names fewer than {count} things; leave such captions out.")
        chosen = [found[place] for place in rng.permutation(len(found))[:count]]
        templates = get_templates("full")
        drawn = [templates[int(rng.integers(len(templates)))].replace("{}", noun) for noun in chosen]
        tokens = tokenizer([caption, *found, *chosen, *drawn])
        nouns = tokens[1 + len(found) : 1 + len(found) + count]
        return {
            "image": sample["image"],
            "tokens": tokens[0],
            "nouns": nouns,
            "templates": tokens[-count:],
            "labels": word_labels(tokens[0], tokens[1 : 1 + len(found)], nouns),
            "ids": noun_ids(chosen, count),
            "named": noun_ids(found, MOST_NAMED),
        }

    def _named(self, caption: str) -> list[str]:
        ignored = set(self.config.ignored_nouns.split())
        return [noun for noun in find_nouns(caption, self.config.tagger) if noun.lower() not in ignored]

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Stack what prepared samples hold."""
        names = ("tokens", "nouns", "templates", "labels", "ids", "named")
        stacked: dict[str, Any] = {name: torch.stack([sample[name] for sample in samples]) for name in names}
        return Batch(images=torch.stack([sample["image"] for sample in samples]), **stacked)

    @torch.no_grad()
    def share(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Gather the nouns of all processes, and draw the noise of the batch that has none.

        Raises:
            ValueError: the noise does not fit the masks.
        """
        offset = process_rank() * len(batch.images)
        everything = {f"all_{name}": gather(getattr(batch, name)) for name in ("nouns", "ids", "named")}
        source = batch.generator if generator is None else generator
        total = len(everything["all_nouns"])
        noise = pair_noise(dataclasses.replace(batch, generator=source), self.mask_size(batch.images), offset, total)
        return dataclasses.replace(batch, **everything, offset=offset, noise=noise, generator=None)

    # -- one sample at a time ------------------------------------------------------------------------------------

    def embed(self, batch: Batch) -> Embeddings:
        """Embed images, nouns, the regions that nouns ground in their image, and captions reduced to each noun.

        Raises:
            ValueError: the shapes do not fit each other or the patch size.
        """
        images, device = batch.images, batch.images.device.type
        if len(images) != len(batch.tokens) or len(images) != len(batch.nouns):
            raise ValueError(
                f"there are {len(images)} images, {len(batch.tokens)} captions and nouns of {len(batch.nouns)}"
            )
        noise = batch.noise
        if batch.all_nouns is None or noise is None:
            offset, total = process_rank() * len(images), world_size() * len(images)
            noise = pair_noise(batch, self.mask_size(batch.images), offset, total)
        with torch.no_grad():
            features = self.image_tokens(batch)
            templates = self.clip.encode_text(batch.templates.flatten(0, 1))
        pixels = self.masker.image_encoder(features, self.clip.grid(images))
        nouns = self._nouns(batch.nouns.flatten(0, 1))
        words = self.word_features(batch.tokens)
        with torch.autocast(device_type=device, enabled=False):
            nouns = nouns.unflatten(0, batch.nouns.shape[:2])
            agreement = (nouns * unit(templates, dim=-1).view_as(nouns)).sum(dim=-1)
            pixels = unit(pixels, dim=1)
            scalars = self.masker.sim2mask
            own = torch.einsum("bke,behw->bkhw", scalars.w * nouns, pixels) + scalars.b
            hard = gumbel_sigmoid(own, noise, self.config.gumbel_tau)
            logits = self.word_logits(words, nouns)
            word_losses, word_weights = self._word_losses(logits, batch.labels)
            masks = logits.softmax(dim=1)[:, 1:]
        regions = self.clip.encode_image(self.highlighted_images(images, hard))
        texts = self.highlighted_texts(batch.tokens, masks)
        with torch.autocast(device_type=device, enabled=False):
            return Embeddings(
                pixels=pixels,
                nouns=nouns,
                regions=unit(regions, dim=-1).view_as(nouns),
                texts=unit(texts, dim=-1).view_as(nouns),
                agreement=agreement,
                word_losses=word_losses,
                word_weights=word_weights,
            )

    def _nouns(self, tokens: Tensor) -> Tensor:
        """Embedded nouns float32 ``[N, E]``, L2-normalized, of token ids ``[N, L]``."""
        found = self.clip_text_encoder.prompt_learner(self.clip, tokens)
        with torch.autocast(device_type=found.device.type, enabled=False):
            return unit(found, dim=-1)

    def word_features(self, tokens: Tensor) -> Tensor:
        """Features float32 ``[B, L, C]`` of the words of captions ``[B, L]``, L2-normalized."""
        found = self.text_decoder(word_states(self.clip, tokens))
        with torch.autocast(device_type=found.device.type, enabled=False):
            return unit(found, dim=-1)

    def word_logits(self, words: Tensor, nouns: Tensor) -> Tensor:
        """How well words fit nouns; the masks of the text are their softmax over the classes.

        Args:
            words: of `word_features`, ``[B, L, C]``.
            nouns: float32 ``[B, K, C]``, L2-normalized.

        Returns:
            float32 ``[B, 1 + K, L]``; the first class, everything that is no noun, has the constant 0.
        """
        cosines = torch.einsum("bke,ble->bkl", nouns, words)
        return F.pad(self.text_mask_w * cosines + self.text_mask_b, (0, 0, 1, 0))

    def highlighted_images(self, images: Tensor, masks: Tensor) -> Tensor:
        """Images of which a mask is left, in front of the learned image.

        Args:
            images: float32 ``[B, 3, H, W]``.
            masks: float ``[B, K, mh, mw]``.

        Returns:
            float32 ``[B K, 3, H, W]``.
        """
        size, behind = images.shape[-2:], cast(Tensor, self.learnable_image_bg)
        if behind.shape[-2:] != size:
            behind = F.interpolate(behind, size=size, mode="bilinear")
        large = F.interpolate(masks, size=size, mode="nearest")[:, :, None]
        return (large * images[:, None] + (1 - large) * behind).flatten(0, 1)

    def highlighted_texts(self, tokens: Tensor, masks: Tensor) -> Tensor:
        """Embeddings of captions of which a mask is left; learned words take the place of the others.

        Args:
            tokens: int64 ``[B, L]``.
            masks: float ``[B, K, L]``; start, end and padding stay whatever they say.

        Returns:
            float ``[B K, E]``, not normalized.
        """
        embed = cast(Any, self.clip.model).token_embedding
        tokens = tokens.to(embed.weight.device)
        ends = text_ends(tokens)
        length = int(ends.max()) + 1
        places = torch.arange(length, device=tokens.device)
        fixed = (places == 0) | (places >= ends[:, None])
        kept = masks[:, :, :length].masked_fill(fixed[:, None], 1)[..., None]
        words = embed(tokens[:, :length])[:, None]
        blended = kept * words + (1 - kept) * self.bg_text[:length, 0]
        return encode_embedded(self.clip, blended.flatten(0, 1), ends.repeat_interleave(masks.shape[1]))

    def _word_losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sums ``[B]`` of the cross-entropies of labeled words, and of their weights."""
        classes = logits.new_ones(logits.shape[1])
        classes[0] = _BACKGROUND_WEIGHT
        labels = labels.to(logits.device)
        losses = F.cross_entropy(logits, labels, weight=classes, ignore_index=-1, reduction="none")
        weights = classes[labels.clamp(min=0)] * (labels >= 0)
        return losses.sum(dim=1), weights.sum(dim=1)

    # -- all samples ---------------------------------------------------------------------------------------------

    def compare(self, embeddings: Embeddings, batch: Batch) -> Compared:
        """Numbers about the masks of these images for the nouns of all processes.

        In a part of a batch, the nouns of all parts are embedded once more, so that the learned prompt has its
        gradient of every mask.
        """
        if batch.all_nouns is None:
            return self._compared(embeddings, gather(embeddings.nouns).flatten(0, 1))
        return self._compared(embeddings, self._nouns(batch.all_nouns.flatten(0, 1)))

    def _compared(self, embeddings: Embeddings, nouns: Tensor) -> Compared:
        pixels, scalars = embeddings.pixels, self.masker.sim2mask
        with torch.autocast(device_type=pixels.device.type, enabled=False):
            terms = mask_terms_in_parts(pixels, nouns, scalars.w, scalars.b)
            rest = {
                field.name: getattr(embeddings, field.name)
                for field in dataclasses.fields(embeddings)
                if field.name != "pixels"
            }
            return Compared(*terms, pixel_variations=variations(pixels), **rest)

    def objective(self, compared: Compared, batch: Batch) -> dict[str, Tensor]:
        """CoDe's objective of a shared batch, see `loss`."""
        with torch.autocast(device_type=compared.rows.device.type, enabled=False):
            weights = pair_weights(batch, self.config.negatives)
            scales = self.tclf_loss(), self.tcli_loss(), self.hcl_loss()
            return weighted_terms(compared, weights, scales, batch.offset, self.config)

    def loss(self, embeddings: Embeddings, batch: Batch) -> dict[str, Tensor]:
        """CoDe's objective.

        With a process group each process passes its own B images; contrasts and masks then run over the nouns of all.
        The mean over the processes of each term is that of one process with all images.

        Returns:
            Scalars: the nine weighted losses under the names of the authors' program (``kg_loss``, ``hlf_noun_loss``,
            ``hli_noun_loss``, ``area_loss``, ``neg_area_loss``, ``tv_img_loss``, ``tv_mask_loss``, ``tseg_loss``,
            ``hcl_loss``), their sum ``total``, and the mean mask of matching (``mask``) and other (``neg_mask``) pairs
            of all processes, without gradient.
        """
        if batch.all_nouns is None:
            everything: dict[str, Any] = {
                f"all_{name}": gather(getattr(batch, name)) for name in ("nouns", "ids", "named")
            }
            batch = dataclasses.replace(batch, **everything, offset=process_rank() * len(batch.images))
        # The nouns of other processes come with their gradient, which is cheaper than to embed them here.
        return self.objective(self._compared(embeddings, gather(embeddings.nouns).flatten(0, 1)), batch)
