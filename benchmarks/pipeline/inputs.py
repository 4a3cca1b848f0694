"""What the pipeline is measured on: files of photographs, and a model file with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from skimage import data

from tcl_core.methods import create_method
from tcl_core.models.metadata import METADATA_KEY, ModelMetadata, Preprocess
from tcl_core.models.modelfile import write_model_file
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["LABELS", "label_options", "write_model", "write_old_model", "write_photographs", "write_small_images"]

LABELS = ("person", "cat", "cup", "table", "rocket", "sky", "wall", "plant")
_WORDS = ("a", "photo", "of", *LABELS)
_CONTEXT = 16
_SIZES = ((1024, 1024), (960, 1280), (1280, 960), (1080, 1440), (1200, 1600), (1365, 1024))


def write_photographs(folder: Path, count: int, seed: int = 0) -> None:
    """Write JPEG files of 1 to 2 megapixels: crops of scikit-image's photographs, enlarged and turned.

    Args:
        folder: made if need be.
        count: number of files.
        seed: of the crops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photographs = [np.asarray(photograph()) for photograph in (data.astronaut, data.chelsea, data.coffee, data.rocket)]
    rng = np.random.default_rng(seed)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        size = _SIZES[rng.integers(len(_SIZES))]
        crop = _crop(photograph, size, rng)
        image = Image.fromarray(crop).resize(size[::-1], Image.Resampling.BICUBIC)
        # What enlarging takes from a photograph: noise, which also is what JPEG takes its time for.
        noise = rng.integers(-12, 13, (*size, 3), dtype=np.int16)
        pixels = np.clip(np.asarray(image).astype(np.int16) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=92)


def _crop(photograph: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of the photograph with the sides' ratio of a size, perhaps mirrored."""
    height, width = photograph.shape[:2]
    scale = min(height / size[0], width / size[1]) * rng.uniform(0.6, 1)
    rows, columns = int(size[0] * scale), int(size[1] * scale)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    part = photograph[top : top + rows, left : left + columns]
    return np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)


def write_small_images(folder: Path, count: int, seed: int = 0) -> None:
    """Write PNG files of 40 x 40 pixels with a few areas."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        blocks = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(20, axis=0).repeat(20, axis=1)).save(
            folder / f"{number:05d}.png", compress_level=1
        )


def write_model(path: Path, *, layers: int = 12, width: int = 768, patch: int = 16, side: int = 448) -> Path:
    """Write a model file of TCL with random weights; by default on a ViT-B/16.

    Args:
        path: of the file.
        layers: blocks of the image tower.
        width: of the image tower.
        patch: side of a patch in pixels.
        side: of the windows, and the short side of the images.
    """
    config: dict[str, Any] = {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": side // 2,
            "patch_size": patch,
            "width": width,
            "head_width": 64,
            "layers": layers,
        },
        "text_cfg": {"context_length": _CONTEXT, "width": 512, "heads": 8, "layers": 4, "vocab_size": len(_WORDS) + 4},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(**config)
        with torch.no_grad():
            # Random towers see little of the image: louder patches, quieter places.
            clip.visual.conv1.weight.mul_(4)
            clip.visual.positional_embedding.mul_(0.5)
        method = create_method("tcl", {"clip": FrozenClip(clip)}, {"init_w": 30.0, "init_b": 0.0, "kp_weight": 0.0})
    metadata = ModelMetadata(
        name="random",
        preprocess=Preprocess(
            (0.48, 0.46, 0.41),
            (0.27, 0.26, 0.28),
            short_side=side,
            max_long_side=4 * side,
            window=side,
            stride=side // 2,
        ),
        method_config=method.config_to_dict(),
        clip={"config": config},
        tokenizer={"type": "words", "words": list(_WORDS), "context_length": _CONTEXT},
        templates="identity",
        background_threshold={"pamr": 0.5, "plain": 0.5},
        license="MIT",
        source="random numbers",
    )
    write_model_file(path, metadata, method.learned_state_dict(), clip.state_dict())
    return path


def write_old_model(model: Path, path: Path) -> Path:
    """Write a model file again in format 1, which early revisions read.

    Args:
        model: from `write_model`.
        path: of the new file.
    """
    with safe_open(model, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        entry = json.loads(file.metadata()[METADATA_KEY])
    config = {key: entry["method_config"][key] for key in ("init_w", "init_b", "kp_weight")}
    entry |= {"format": 1, "licence": entry.pop("license"), "method_config": config}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(entry)})
    return path


def label_options(labels: Sequence[str] = LABELS) -> list[str]:
    """The labels as options of ``tcl-annotate prelabel``."""
    return [word for label in labels for word in ("--label", label)]
