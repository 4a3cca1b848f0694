"""A model file of a few hundred kilobytes with random weights, for tests of everything that is not about quality.

Its scores depend on color and place, so that label maps have several regions, but mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch

from tcl_core.methods import create_method
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.models.modelfile import write_model_file
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["WORDS", "write_tiny_model"]

WORDS = ("a", "photo", "of", "the", "red", "green", "blue", "cat", "dog", "sofa", "couch", "ball", "tree", "sky", "car")
CONTEXT = 12

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": False,
    "vision_cfg": {
        "image_size": 64,
        "patch_size": 8,
        "width": 64,
        "head_width": 32,
        "layers": 3,
        "pool_type": "avg",
    },
}
TEXT_CONFIG = {"context_length": CONTEXT, "width": 32, "heads": 2, "layers": 2}


def write_tiny_model(path: Path, seed: int = 0, words: Sequence[str] = WORDS) -> Path:
    """Write a model file that knows some words; the same seed and words give the same bytes."""
    config = {**CLIP_CONFIG, "text_cfg": {**TEXT_CONFIG, "vocab_size": len(words) + 4}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**config)
        with torch.no_grad():
            # Random towers see little of the image: louder patches, quieter places.
            clip.visual.conv1.weight.mul_(4)
            clip.visual.positional_embedding.mul_(0.5)
        method = create_method("tcl", {"clip": FrozenClip(clip)}, {"init_w": 30.0, "init_b": 0.0, "kp_weight": 0.0})
    metadata = ModelMetadata(
        name="tiny",
        preprocess=Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 64, 256, 64, 32),
        method_config=method.config_to_dict(),
        clip={"config": config},
        tokenizer={"type": "words", "words": list(words), "context_length": CONTEXT},
        templates="identity",
        background_threshold={"pamr": 0.5, "plain": 0.5},
        license="MIT",
        source="random numbers",
    )
    write_model_file(path, metadata, method.learned_state_dict(), clip.state_dict())
    return path
