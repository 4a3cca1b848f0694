"""Playground scenes as image-text shards, to try a training with: ``python -m training.playground.shards FOLDER``."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tcl_core.playground import caption
from training.playground.arguments import at_least
from training.playground.data import ImageSet, draw_image

__all__ = ["main", "write_shards"]

_SCENES = ImageSet(count=4000, size=64, objects=(1, 3), radius=(12, 30), plain=0.1, seed=1)


def write_shards(folder: Path, scenes: ImageSet, per_shard: int) -> list[Path]:
    """Draw scenes with a caption each, and write them as img2dataset would.

    Args:
        folder: made if need be.
        scenes: what to draw.
        per_shard: scenes in each tar file.

    Returns:
        The shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard, start in enumerate(range(0, scenes.count, per_shard)):
        path = folder / f"{shard:05d}.tar"
        with tarfile.open(path, "w") as archive:
            for index in range(start, min(start + per_shard, scenes.count)):
                pixels, scene = draw_image(scenes, index)
                rng = np.random.default_rng([scenes.seed, index])
                text, image, key = caption(rng, scene, (), 0.5), io.BytesIO(), f"{shard:05d}{index - start:04d}"
                Image.fromarray(pixels).save(image, "JPEG", quality=95)
                entry = json.dumps({"key": key, "caption": text, "width": scenes.size, "height": scenes.size})
                for ending, content in (("jpg", image.getvalue()), ("json", entry.encode()), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        paths.append(path)
    return paths


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m training.playground.shards", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the tar files go")
    parser.add_argument("--count", type=at_least(1), default=_SCENES.count, help="scenes")
    parser.add_argument("--per-shard", type=at_least(1), default=500, help="scenes in each tar file")
    options = parser.parse_args()
    scenes = ImageSet(**{**_SCENES.__dict__, "count": options.count})
    paths = write_shards(options.folder, scenes, options.per_shard)
    print(f"wrote {scenes.count} scenes into {len(paths)} shards in {options.folder}")


if __name__ == "__main__":
    main()
