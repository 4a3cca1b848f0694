"""Prompts as CLIP's own embeddings, the mean over templates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.prompts import texts_in_templates
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["embed_in_templates"]

_TEXT_BATCH = 128


@torch.no_grad()
def embed_in_templates(clip: FrozenClip, prompts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Embed prompts as the mean over templates, each of them normalized first, normalized again.

    Args:
        clip: the frozen towers.
        prompts: P texts.
        templates: T texts, each with one ``{}`` for the prompt.

    Returns:
        float32 ``[P, E]``.

    Raises:
        SettingsError: the tower has no tokenizer.
    """
    device = clip.visual.proj.device
    if not prompts:
        return torch.zeros(0, clip.embed_dim, device=device)
    if clip.tokenizer is None:
        raise SettingsError("The CLIP has no tokenizer, so prompts cannot be embedded; give it one.")
    texts = texts_in_templates(prompts, templates)
    # Texts that begin alike go together, because the text tower computes shared beginnings once.
    order = sorted(range(len(texts)), key=texts.__getitem__)
    parts = clip.tokenizer([texts[place] for place in order]).split(_TEXT_BATCH)
    found = torch.cat([F.normalize(clip.encode_text(part).float(), dim=-1) for part in parts])
    rows = torch.empty_like(found)
    rows[order] = found
    return F.normalize(rows.unflatten(0, (len(prompts), -1)).mean(dim=1), dim=-1)
