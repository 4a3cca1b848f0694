"""Train the embedded model: ``python -m training.playground``.

Runs on two CPU cores, shows progress, can be interrupted and resumes where it stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from tcl_core.methods.tcl import TCL
from tcl_core.models.metadata import ModelMetadata
from tcl_core.models.modelfile import write_model_file
from tcl_core.playground import CLASS_NAMES, COLORS, caption_words
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer
from tcl_core.vocabulary.templates import get_templates
from training.playground.clip import build_clip, train_clip
from training.playground.debias import color_axes
from training.playground.estimate import estimate
from training.playground.recipe import RECIPE, Recipe, clip_config
from training.playground.tcl import train_tcl

__all__ = ["main", "run"]

CAPTION_TEMPLATES = "full"
EVALUATION_TEMPLATES = "custom"


def run(recipe: Recipe, folder: Path, out: Path) -> str:
    """Train, and write the model file.

    Args:
        recipe: what to do.
        folder: checkpoints and logs; an interrupted run resumes from there.
        out: the model file (``.safetensors``).

    Returns:
        SHA-256 of the model file.
    """
    templates = get_templates(CAPTION_TEMPLATES)
    tokenizer = WordTokenizer(caption_words(templates), recipe.context_length)
    config = clip_config(tokenizer.vocab_size, recipe.context_length)
    model = build_clip(config, recipe.seed)
    settings = json.loads(json.dumps(asdict(recipe)))
    clip_recipe = json.dumps([recipe.seed, config, tokenizer.to_dict()], sort_keys=True)
    train_clip(model, recipe.clip_phases, tokenizer, templates, recipe.seed, folder, clip_recipe)
    clip = FrozenClip(model)
    tcl = TCL(clip, recipe.tcl)
    # What comes after the training takes no part: to change it must not cost what was trained.
    decisive = {key: settings[key] for key in ("clip_phases", "tcl", "tcl_stage")}
    tcl_recipe = json.dumps([clip_recipe, decisive], sort_keys=True)
    train_tcl(tcl, recipe.tcl_stage, tokenizer, templates, recipe.seed, folder, tcl_recipe)
    metadata = ModelMetadata(
        name="playground",
        preprocess=recipe.preprocess,
        method_config=recipe.tcl.to_dict(),
        clip={"config": config},
        tokenizer=tokenizer.to_dict(),
        templates=EVALUATION_TEMPLATES,
        background_threshold=recipe.tcl.heights(),
        background_names=list(CLASS_NAMES),
        debiasing={"words": list(COLORS), "text_set": "text"},
        license="MIT",
        source="python -m training.playground",
        extra={"recipe": settings},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_model_file(
        out,
        metadata,
        tcl.learned_state_dict(),
        model.state_dict(),
        debiasing_axes=color_axes(tcl, tokenizer, recipe.tcl_stage.images, recipe.debias_images, recipe.debias_axes),
        half=True,
    )


def _print_estimate() -> None:
    total = 0.0
    for part in estimate(RECIPE, CAPTION_TEMPLATES):
        total += part.seconds
        print(f"{part.name:<16} {part.count:>7} {part.seconds / 60:6.1f} min", flush=True)
    print(f"{'in all':<24} {total / 60:6.1f} min")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m training.playground", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/playground"), help="checkpoints and logs")
    parser.add_argument(
        "--out", type=Path, default=Path("build/playground/playground.safetensors"), help="the model file to write"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--estimate", action="store_true", help="only print how long training would take on this machine"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        if options.estimate:
            _print_estimate()
            return
        sha256 = run(RECIPE, options.work, options.out)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    print(f"wrote {options.out} (SHA-256 {sha256})")
    print(f"score it: tcl-annotate playground evaluate --model {options.out}")
    print("embed it: copy it to tcl_core/assets/playground.safetensors")


if __name__ == "__main__":
    main()
