"""Tar shards as img2dataset writes them, whole and damaged."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Member = tuple[str, bytes]


def encoded(seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """A random image, smooth enough to survive JPEG."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(out, kind)
    return out.getvalue()


def sample(number: int, image: bytes | None = None, caption: bytes | None = None, name: str = "") -> list[Member]:
    """The three members of a sample."""
    name = name or f"{number:09d}"
    image = encoded(number) if image is None else image
    caption = f"a cat number {number}".encode() if caption is None else caption
    return [(f"{name}.jpg", image), (f"{name}.json", json.dumps({"key": name}).encode()), (f"{name}.txt", caption)]


def write_shard(path: Path, members: Iterable[Member]) -> Path:
    """Write a tar file."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def plain_shards(folder: Path, counts: Iterable[int] = (7, 5, 9)) -> list[Path]:
    """Whole shards, whose samples are numbered through."""
    paths, number = [], 0
    for shard, count in enumerate(counts):
        members = [member for n in range(number, number + count) for member in sample(n)]
        paths.append(write_shard(folder / f"{shard:05d}.tar", members))
        number += count
    return paths
