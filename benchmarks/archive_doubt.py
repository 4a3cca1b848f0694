"""How well words are found out that an archive does not show: ``python -m benchmarks.archive_doubt``.

Archives are scenes of the playground: all of them, and for each class those without it. The table has the share of
words that are warned about, in the first case wrongly and in the second rightly.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tcl_core.archive.base import load_base
from tcl_core.archive.doubt import MOST_BETTER, better_names
from tcl_core.archive.pixels import square
from tcl_core.methods.reco.cosegmentation import nearest_images
from tcl_core.methods.reco.fitting import images_per_word
from tcl_core.methods.training_free.prompts import embed_in_templates
from tcl_core.playground import CLASS_NAMES, draw_scene, scene_rng
from tcl_core.vocabulary.templates import get_templates

__all__ = ["main", "measure"]

_SEED = 991


@torch.no_grad()
def measure(scenes: int, images: int | None = None) -> dict[str, Any]:
    """Shares of words that are warned about, in archives that show them and that do not.

    Args:
        scenes: of the archive.
        images: retrieved for each word; by default `images_per_word`.
    """
    base = load_base("playground", device="cpu")
    pixels, shown = [], []
    for index in range(scenes):
        scene = draw_scene(scene_rng(_SEED, index))
        pixels.append(square(scene.image, base.embedded_side, base.model.preprocess))
        shown.append({int(label) - 1 for label in np.unique(scene.label_map)})
    embedded = torch.cat([base.method.embed_images(part) for part in torch.stack(pixels).split(32)])
    templates = get_templates(base.model.templates)
    texts = embed_in_templates(base.method.clip, CLASS_NAMES, templates)
    single = embed_in_templates(base.method.clip, CLASS_NAMES, templates[:1])
    count = images_per_word(scenes) if images is None else images
    shares: dict[str, list[float]] = {"shown": [], "not shown": []}
    for place, text in enumerate(texts):
        without = torch.tensor([place not in labels for labels in shown])
        # A word that fewer images show than are retrieved is in between.
        if int((~without).sum()) >= count:
            nearest = nearest_images(embedded, text, count)[1]
            shares["shown"].append(better_names(embedded[nearest], single, place))
        rest = embedded[without]
        shares["not shown"].append(better_names(rest[nearest_images(rest, text, count)[1]], single, place))
    return {
        "scenes": scenes,
        "images": count,
        "limit": MOST_BETTER,
        **{
            kind: {"words": len(values), "warned": sum(value > MOST_BETTER for value in values) / max(1, len(values))}
            for kind, values in shares.items()
        },
    }


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--images", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    text = json.dumps(measure(given.scenes, given.images), indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
