"""Images, captions and the CLIP on which methods are compared."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from tcl_core.methods.code.nouns import find_nouns
from tcl_core.models.modelfile import read_model_file, write_model_file
from tcl_core.models.registry import find_model
from tcl_core.playground import caption, scene_rng
from tcl_core.towers.tokenizer import split_words
from tcl_core.vocabulary.templates import get_templates
from training.data.source import DataReport, Pair, Source
from training.playground.data import DRAWN_TOGETHER, ImageSet, draw_image
from training.playground.recipe import RECIPE
from training.processes import in_order

__all__ = ["NO_THINGS", "SceneSource", "captions_of", "draw", "extended_clip"]

NO_THINGS = "background drawing illustration left lot photo picture right scene"
"""Words of the captions' frames, which are nouns but no things of a scene."""

_TRIES = 60
_BRIEF = 0.55


def extended_clip(path: Path, positions: int, source: Path | None = None) -> Path:
    """Write a model with a longer text tower, see `training.playground.compare_methods`.

    Args:
        path: the model file to write.
        positions: of its text tower.
        source: a model file that holds its CLIP, as `training.playground` makes them; ``None`` for the embedded one.
    """
    file = read_model_file(source or find_model("playground"))
    metadata, config = file.metadata, json.loads(json.dumps(file.metadata.clip["config"]))
    known = config["text_cfg"]["context_length"]
    config["text_cfg"]["context_length"] = positions
    rows = [place if place < known else 1 + (place - 1) % (known - 1) for place in range(positions)]
    clip = dict(file.clip)
    clip["positional_embedding"] = clip["positional_embedding"][rows].clone()
    metadata = dataclasses.replace(
        metadata,
        name="playground-longer",
        clip={"config": config},
        tokenizer={**metadata.tokenizer, "context_length": positions},
        debiasing={},
        extra={"clip_of": file.sha256},
    )
    write_model_file(path, metadata, file.learned, clip)
    return path


def captions_of(images: ImageSet, index: int) -> tuple[bytes, dict[str, str]] | None:
    """An image of a set, uint8 pixels, with a caption of each kind; nothing if two things of it cannot be named."""
    pixels, scene = draw_image(images, index)
    rng = scene_rng(images.seed, index, 1)
    brief = caption(rng, scene, get_templates("full"), _BRIEF)
    for _ in range(_TRIES):
        text = caption(rng, scene, (), 0.0)
        named = [noun for noun in find_nouns(text, "rules") if noun not in NO_THINGS.split()]
        if len(named) >= 2 and len(split_words(text)) <= RECIPE.context_length - 2:
            return pixels.tobytes(), {"brief": brief, "two": text}
    return None


def draw(folder: Path, images: ImageSet, workers: int, check: Callable[[], None] = lambda: None) -> None:
    """Draw images and captions into a folder, once.

    Args:
        folder: is made if need be.
        images: what to draw.
        workers: processes that draw; 0 draws in this one.
        check: called after each image; what it raises ends the work and is passed on.
    """
    about, pixels_file = folder / "captions.json", folder / "images.npy"
    if _drawn(about) == json.loads(json.dumps(dataclasses.asdict(images))):
        return
    folder.mkdir(parents=True, exist_ok=True)
    # The captions are written last, and say that all is there.
    about.unlink(missing_ok=True)
    texts: list[dict[str, str]] = []
    pixels = bytearray()
    with closing(in_order(partial(captions_of, images), range(images.count), workers, DRAWN_TOGETHER)) as drawn:
        for found in tqdm(drawn, total=images.count, desc="drawing", mininterval=5):
            check()
            if found is not None:
                pixels += found[0]
                texts.append(found[1])
    np.save(pixels_file, np.frombuffer(pixels, np.uint8).reshape(len(texts), images.size, images.size, 3))
    part = about.with_suffix(".part")
    part.write_text(json.dumps({"set": dataclasses.asdict(images), "captions": texts}))
    part.replace(about)


def _drawn(about: Path) -> Any:
    """The set whose captions a file holds; nothing where it holds none."""
    try:
        return json.loads(about.read_text())["set"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


class SceneSource(Source):
    """Drawn scenes with captions of one kind.

    Args:
        folder: of `draw`.
        kind: of the captions.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        content = json.loads((folder / "captions.json").read_text())
        self._captions = [entry[kind] for entry in content["captions"]]
        self._pixels = np.load(folder / "images.npy", mmap_mode="r")
        self._identity = f"scenes {json.dumps(content['set'], sort_keys=True)} {kind}"
        self.groups = [len(part) for part in np.array_split(np.arange(len(self._captions)), 8)]
        self.report = DataReport(pairs=len(self._captions), files=1)

    def read(self, index: int) -> Pair:
        """The pair of a number."""
        stream = io.BytesIO()
        Image.fromarray(np.asarray(self._pixels[index])).save(stream, "BMP")
        return Pair(stream.getvalue(), self._captions[index], f"scene {index}")

    def identity(self) -> str:
        """The set and the kind of captions."""
        return self._identity
