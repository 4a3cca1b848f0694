"""The numbers behind the embedded model; docs/history.md says how they were found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tcl_core.methods.tcl import TCLConfig
from tcl_core.models.metadata import Preprocess
from training.playground.clip import ClipPhase, View
from training.playground.data import ImageSet
from training.playground.schedule import Schedule
from training.playground.tcl import TclStage

__all__ = ["RECIPE", "Recipe", "clip_config"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        seed: of the weights, the batches, the captions and the noise.
        context_length: tokens of a caption.
        read_images: images of each set in whose captions the names of things, stuff and colors are found.
        whitened: images on whose features the towers' projections are whitened.
        clip_phases: parts of the pre-training.
        tcl: settings of the method.
        tcl_stage: how the grounder is trained.
        debias_axes: how many directions in which colors differ are taken out of prompts that say none.
        debias_images: training images in which these directions are looked for.
        preprocess: how images are shown to the finished model.
    """

    seed: int
    context_length: int
    read_images: int
    whitened: int
    clip_phases: tuple[ClipPhase, ...]
    tcl: TCLConfig
    tcl_stage: TclStage
    debias_axes: int
    debias_images: int
    preprocess: Preprocess

    def image_sets(self) -> tuple[ImageSet, ...]:
        """All sets of training images, each once."""
        shown = [view.images for phase in self.clip_phases for view in phase.views]
        return tuple(dict.fromkeys([*shown, self.tcl_stage.images]))


def clip_config(vocab_size: int, context_length: int) -> dict[str, Any]:
    """open_clip's configuration of the small CLIP.

    The image tower pools the mean of its patch tokens: every token's projection then takes part in the embedding
    that meets the caption, so that dense features are text-aligned by construction. Pooled by its class token, a
    tower of this size learns features that localize almost nothing.
    """
    return {
        "embed_dim": 192,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 8,
            "width": 192,
            "head_width": 32,
            "layers": 6,
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": 192,
            "heads": 3,
            "layers": 3,
        },
    }


_OBJECTS = ImageSet(count=120_000, size=48, objects=(1, 1), radius=(14, 24), plain=0.5, seed=4, captions=8)
_SCENES = ImageSet(count=96_000, size=64, objects=(1, 3), radius=(12, 30), plain=0.1, seed=1)

RECIPE = Recipe(
    seed=0,
    context_length=16,
    read_images=2000,
    whitened=1500,
    clip_phases=(
        ClipPhase(
            name="clip-1-objects",
            views=(View(_OBJECTS, batch=128, collage=1),),
            captions=1,
            brief=0.5,
            balanced=False,
            local_weight=0.0,
            schedule=Schedule(steps=2200, lr=8e-4, min_lr=4e-4, warmup=50),
        ),
        ClipPhase(
            name="clip-2-collages",
            views=(
                View(_OBJECTS, batch=144, collage=3),
                View(_OBJECTS, batch=192, collage=1),
                View(_SCENES, batch=128, collage=2),
                View(_OBJECTS, batch=192, collage=1),
            ),
            captions=2,
            brief=0.5,
            balanced=False,
            local_weight=1.0,
            schedule=Schedule(steps=2200, lr=7e-4, min_lr=1e-5, warmup=50),
        ),
        ClipPhase(
            name="clip-3-scenes",
            views=(
                View(_SCENES, batch=128, collage=2),
                View(_OBJECTS, batch=192, collage=1),
                View(_SCENES, batch=128, collage=2),
                View(_OBJECTS, batch=144, collage=3),
            ),
            captions=2,
            brief=0.5,
            balanced=True,
            local_weight=1.0,
            schedule=Schedule(steps=1000, lr=4e-4, min_lr=1e-5, warmup=50),
        ),
    ),
    tcl=TCLConfig(
        ie_freeze=3,
        decoder_layers=1,
        area_prior=0.25,
        tv_weight=0.25,
        refine_scale=12,
        # Chosen on projects of a few labels, where all other names of the world compete (docs/history.md).
        kp_weight=0.0,
        background_threshold_pamr=0.25,
        background_threshold_plain=0.3,
    ),
    tcl_stage=TclStage(
        images=_SCENES,
        batch=64,
        briefs=(0.4, 0.7),
        shares=(0.6, 0.4),
        balanced=True,
        ust_steps=200,
        schedule=Schedule(
            steps=1500, lr=7e-4, min_lr=2e-5, warmup=50, betas=(0.9, 0.999), clip_norm=5.0, scalar_scale=5.0
        ),
    ),
    debias_axes=11,
    debias_images=6000,
    preprocess=Preprocess(
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), short_side=112, max_long_side=1024, window=64, stride=48
    ),
)
"""The recipe of the embedded model."""
