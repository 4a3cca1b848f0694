"""A few images with masks, and evaluations of them by the tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

LABELS = "labels: [cat, sofa, {name: tree, value: 9}]\n"


def write_own_data(folder: Path, count: int = 6, seed: int = 0) -> Path:
    """``images``, ``masks`` and ``labels.yaml``; masks hold 0, labels, and 255, which does not count."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name / "room").mkdir(parents=True)
    for number in range(count):
        height, width = int(rng.integers(40, 70)), int(rng.integers(40, 70))
        blocks = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        values = np.array([0, 1, 2, 9, 255], np.uint8)[rng.choice(5, (5, 5), p=[0.3, 0.2, 0.2, 0.2, 0.1])]
        place = f"room/image-{number}"
        Image.fromarray(blocks[:height, :width]).save(folder / "images" / f"{place}.png")
        mask = values.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
        Image.fromarray(mask).save(folder / "masks" / f"{place}.png")
    (folder / "labels.yaml").write_text(LABELS, encoding="utf-8")
    return folder
