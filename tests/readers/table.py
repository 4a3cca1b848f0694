"""The table of docs/coco-readers.md: what libraries make of COCO files of each geometry.

``python -m tests.readers.table`` writes it; the libraries live in an environment of their own (``make readers``), whose
Python is ``.venv-readers/bin/python`` or what ``TCL_ANNOTATE_READERS`` says.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tcl_core.export.coco import CocoFile, Geometry, ImageResult, region_to_annotation
from tcl_core.export.coco.geometry import has_hole
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary
from tests.readers.read_coco import READERS

KINDS: tuple[str, ...] = ("polygon", "keyhole", "rle", "mixed")
"""The geometries, and polygons with RLE for regions with holes, as this program wrote by default once."""

_ROOT = Path(__file__).resolve().parents[2]
_VOCABULARY = Vocabulary.from_options(["sky", "grass", "house", "tree"])
_IMAGES = 2
_LOST_SHARE = 0.05


@dataclass(frozen=True)
class Reading:
    """What a reader made of a file.

    Attributes:
        version: of its package.
        annotations: of the file.
        missing: why it could not be asked: the library is not installed.
        error: what it ended with.
        shapes: that it loaded; at least one for each annotation if none was dropped.
        lost: pixels of labels that no shape of the label covers.
        doubled: pixels that more than one shape covers.
        wrong: pixels, counted for each label, that its shapes cover and the label map does not give it, or the reverse.
        holes_filled: holes of regions that shapes of the region's label cover by more than half.
    """

    version: str
    annotations: int
    missing: str | None = None
    error: str | None = None
    shapes: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    holes_filled: int = 0

    @property
    def masks_lost(self) -> bool:
        """Whether more is gone than any way of drawing borders explains."""
        return self.lost > _LOST_SHARE * _IMAGES * scene(0).size

    def cell(self) -> str:
        """One cell of the table."""
        if self.missing is not None:
            return "not installed"
        if self.error is not None:
            return f"**fails** ({self.error.split(':')[0]})"
        faults = []
        if self.shapes < self.annotations:
            faults.append(f"**{self.annotations - self.shapes} of {self.annotations} dropped**")
        if self.masks_lost:
            faults.append("**masks lost**")
        if self.holes_filled:
            faults.append(f"**{self.holes_filled} holes filled**")
        return f"{', '.join(faults) or 'whole'}; {self.wrong:,} px"


def interpreter() -> Path:
    """Python of the readers' environment."""
    return Path(os.environ.get("TCL_ANNOTATE_READERS", _ROOT / ".venv-readers" / "bin" / "python"))


def scene(number: int) -> np.ndarray:
    """A label map int32 ``[180, 240]``: discs with holes, one of which holds another label, on two halves."""
    y, x = np.mgrid[:180, :240]
    label_map = np.where(y > 110, 2, 1)
    label_map[(x - 70) ** 2 + (y - 70) ** 2 < 45**2] = 3
    label_map[(x - 60) ** 2 + (y - 60) ** 2 < 12**2] = 4
    label_map[(x - 85) ** 2 + (y - 80) ** 2 < 9**2] = 0
    label_map[(x - 180) ** 2 / 1.5 + (y - 120) ** 2 < 30**2] = 4
    label_map[(x - 180) ** 2 / 1.5 + (y - 120) ** 2 < 15**2] = 1
    return np.roll(label_map, 7 * number, axis=1).astype(np.int32)


def write_file(folder: Path, kind: str, tolerance: str) -> Path:
    """The scenes as a COCO file of a kind, and their images beside it in ``images``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / "annotations.json"
    file = CocoFile(path, _VOCABULARY)
    for number in range(_IMAGES):
        label_map = scene(number)
        name = f"image-{number}.png"
        Image.fromarray((label_map * 50).astype(np.uint8)).convert("RGB").save(folder / "images" / name)
        maps = Segmentation(label_map, (label_map > 0).astype(np.float32), _VOCABULARY)
        annotations = []
        for region in label_map_to_regions(maps, tolerance=tolerance):
            with_hole = "rle" if kind == "mixed" and has_hole(region.mask) else "polygon"
            geometry = with_hole if kind == "mixed" else kind
            annotations.append(region_to_annotation(region, label_map.shape, cast(Geometry, geometry)))
        file.add(ImageResult(name, *label_map.shape, annotations))
    file.close({})
    return path


def read_with(reader: str, path: Path) -> Reading:
    """Let a reader read a file, in its own environment and process."""
    data = json.loads(path.read_text())
    count = len(data["annotations"])
    script = Path(__file__).with_name("read_coco.py")
    command = [interpreter(), "-W", "ignore", script, reader, path, path.parent / "images"]
    quiet = {**os.environ, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "NO_ALBUMENTATIONS_UPDATE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=quiet, check=False)
    if run.returncode:
        return Reading("", count, missing=run.stderr.strip().splitlines()[-1])
    answer = json.loads(run.stdout.splitlines()[-1])
    if "shapes" not in answer:
        return Reading(answer["version"], count, missing=answer.get("missing"), error=answer.get("error"))
    lost = doubled = wrong = filled = 0
    for number in range(_IMAGES):
        truth = scene(number)
        shapes = [(label, _decoded(text, truth)) for image, label, text in answer["shapes"] if image == number + 1]
        covered = np.sum([mask for _, mask in shapes], axis=0) if shapes else np.zeros(truth.shape, int)
        doubled += int((covered > 1).sum())
        for label in range(1, 5):
            drawn = np.any([mask for other, mask in shapes if other == label] or [np.zeros(truth.shape, bool)], axis=0)
            lost += int(((truth == label) & ~drawn).sum())
            wrong += int(((truth == label) != drawn).sum())
            filled += sum((drawn & hole).sum() * 2 > hole.sum() for hole in _holes(truth, label))
    return Reading(answer["version"], count, None, None, len(answer["shapes"]), lost, doubled, wrong, filled)


def _decoded(text: str, like: np.ndarray) -> np.ndarray:
    return coco_mask.decode({"size": list(like.shape), "counts": text.encode()}) > 0


def _holes(label_map: np.ndarray, label: int) -> Iterator[np.ndarray]:
    """Places inside a region of a label that are another's."""
    from scipy import ndimage

    own, count = ndimage.label(label_map == label)
    for number in range(1, count + 1):
        outside, pieces = ndimage.label(np.pad(own != number, 1, constant_values=True))
        for piece in range(2, pieces + 1):
            yield (outside == piece)[1:-1, 1:-1] & (label_map != label)


def table() -> str:
    """The table as Markdown, at the default tolerance."""
    lines = ["| reader | " + " | ".join(f"`{kind}`" for kind in KINDS) + " |", "|---|" + "---|" * len(KINDS)]
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: write_file(Path(folder) / kind, kind, "default") for kind in KINDS}
        for reader in READERS:
            readings = [read_with(reader, files[kind]) for kind in KINDS]
            rules = reader.endswith("rules of polygons and crops")
            version = "" if rules or not readings[0].version else f" ({readings[0].version})"
            lines.append(f"| {reader}{version} | " + " | ".join(reading.cell() for reading in readings) + " |")
    return "\n".join(lines)


def write_page(page: Path) -> None:
    """Put the table in its place in a page, between two comments."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


BEGIN, END = "<!-- table of readers -->", "<!-- end of the table -->"

if __name__ == "__main__":
    write_page(_ROOT / "docs" / "coco-readers.md")
