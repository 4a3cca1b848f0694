"""After training: which directions of the text space say colours, so that prompts without one can do without."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tcl_core.clip import FrozenClip
from tcl_core.debiasing import attribute_axes
from tcl_core.playground import COLOURS, KINDS, is_held_out
from tcl_core.tokenizer import Tokenizer

__all__ = ["colour_axes"]


def colour_axes(clip: FrozenClip, tokenizer: Tokenizer, count: int) -> Tensor:
    """The strongest directions in which the captions of the playground's colours differ.

    Held-out combinations take no part, as in training.

    Args:
        clip: the trained CLIP.
        tokenizer: its tokenizer.
        count: number of directions A, fewer than there are colours.

    Returns:
        float32 ``[A, E]``, orthonormal rows, see :func:`tcl_core.debiasing.attribute_axes`.
    """

    def embed(texts: list[str]) -> dict[str, Tensor]:
        embedded = F.normalize(clip.encode_text(tokenizer([f"a {text}" for text in texts])).float(), dim=-1)
        return dict(zip(texts, embedded, strict=True))

    plain = embed(list(KINDS))
    coloured = {}
    for colour in COLOURS:
        pairs = embed([f"{colour} {kind}" for kind in KINDS if not is_held_out(kind, colour)])
        coloured[colour] = {pair.removeprefix(f"{colour} "): embedding for pair, embedding in pairs.items()}
    return attribute_axes(coloured, plain, count)
