"""Ground truth and detections as COCOeval wants them: read, checked, and with the same ids.

The ground truth is a COCO file. Detections are a list of results, with the ground truth's ids, or a COCO file with ids
of its own, whose images are then told by their file names and whose categories by their names.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from tcl_core.errors import CocoError
from tcl_core.export.coco.rle import MOST_PIXELS, encode_counts, read_rle
from tcl_core.polygons.rasterize import is_far_outside
from tcl_core.validation import is_finite_number

__all__ = ["GroundTruth", "Objects", "read_detections", "read_ground_truth"]


@dataclass
class Objects:
    """Annotations or detections, with plain values and the ground truth's ids.

    Attributes:
        path: the file they come from.
        entries: each with ``image_id``, ``category_id`` and ``place`` (in the file), ``bbox`` and ``segmentation``
            (compressed run lengths) or ``None``, detections with ``score``, annotations with ``area`` and ``iscrowd``.
        notes: what was left out or filled in, in sentences.
        images: ids of the images that the file speaks of.
    """

    path: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: set[int] = field(default_factory=set)

    def without(self, key: str) -> str | None:
        """Place of the first entry without a box or segmentation; ``None`` if all have one."""
        return next((entry["place"] for entry in self.entries if entry[key] is None), None)


@dataclass
class GroundTruth(Objects):
    """Annotations, and what they refer to.

    Attributes:
        names: file name of each image by id.
        sizes: ``(height, width)`` of each image by id, ``None`` where the file does not say.
        categories: name of each category by id.
    """

    names: dict[int, str] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int] | None] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)


def read_ground_truth(path: str | os.PathLike[str]) -> GroundTruth:
    """Read a COCO file of boxes or instances.

    Args:
        path: of the file; ids of any kind will do, also 0.

    Raises:
        CocoError: it cannot be read, is of another kind, or an entry cannot be scored; the message names its place.
    """
    file = Path(path)
    data = _load(file)
    if isinstance(data, list):
        raise CocoError(f"{file}: is a list of results, not a COCO file with ground truth; are --gt and --dt swapped?")
    truth = GroundTruth(file)
    for place, entry in _objects(data, "images", file):
        identity = _id(entry, "id", place, file)
        if identity in truth.names:
            raise CocoError(f"{file}: {place}: the id {identity} is used twice; give each image its own id")
        truth.names[identity] = str(entry.get("file_name", ""))
        truth.sizes[identity] = _size(entry)
    for place, entry in _objects(data, "categories", file):
        identity = _id(entry, "id", place, file)
        if identity in truth.categories:
            raise CocoError(f"{file}: {place}: the id {identity} is used twice; give each category its own id")
        truth.categories[identity] = str(entry.get("name", ""))
    truth.images = set(truth.names)
    filled: Counter[str] = Counter()
    for place, entry in _objects(data, "annotations", file):
        if "caption" in entry or "segments_info" in entry:
            raise CocoError(f"{file}: {place}: is a caption or has panoptic segments; scoring needs boxes or masks")
        found = _object(entry, place, truth, file, entry.get("image_id"), entry.get("category_id"))
        crowd, area = entry.get("iscrowd"), entry.get("area")
        filled["iscrowd"] += crowd is None
        found["iscrowd"] = int(bool(crowd))
        if area is None or not is_finite_number(area):
            filled["area"] += 1
            area = _area(found)
        truth.entries.append({**found, "area": area})
    for key, value in (("iscrowd", "0"), ("area", "that of the mask or box")):
        if filled[key]:
            truth.notes.append(f"{filled[key]:,} annotations of {file} lack {key}; {value} is taken")
    return truth


def read_detections(path: str | os.PathLike[str], truth: GroundTruth) -> Objects:
    """Read detections, and give them the ids of the ground truth.

    Args:
        path: of a list of results or a COCO file with scores.
        truth: from `read_ground_truth`.

    Raises:
        CocoError: it cannot be read, a score is missing, ids or names are not those of the ground truth, or an image
            has another size there; the message names the place and the remedy.
    """
    file = Path(path)
    data = _load(file)
    found = Objects(file)
    if isinstance(data, list):
        for index, entry in enumerate(data):
            place = f"[{index}]"
            if not isinstance(entry, dict):
                raise CocoError(f"{file}: {place}: is not an object (found {type(entry).__name__})")
            image, category = _id(entry, "image_id", place, file), _id(entry, "category_id", place, file)
            _scored(found, entry, place, truth, image, category)
        found.images = {entry["image_id"] for entry in found.entries}
        return found
    images = _matched_images(data, truth, found)
    categories = _matched_categories(data, truth, found)
    left_out: Counter[str] = Counter()
    for place, entry in _objects(data, "annotations", file):
        image, category = _id(entry, "image_id", place, file), _id(entry, "category_id", place, file)
        for key, value, known in (("image", image, images), ("category", category, categories)):
            if value not in known:
                raise CocoError(f"{file}: {place}: {key}_id is {value}, and the file has no {key} with that id")
        if images[image] is None or categories[category] is None:
            left_out["images" if images[image] is None else "categories"] += 1
            continue
        _scored(found, entry, place, truth, images[image], categories[category])
    for what, count in sorted(left_out.items()):
        found.notes.append(f"{count:,} detections are left out, for their {what} are not in {truth.path}")
    found.images = {identity for identity in images.values() if identity is not None}
    return found


def _scored(
    found: Objects, entry: Mapping[str, Any], place: str, truth: GroundTruth, image: int | None, category: int | None
) -> None:
    score = entry.get("score")
    if score is None or not is_finite_number(score):
        raise CocoError(
            f"{found.path}: {place}: score is {'missing' if score is None else 'not a number'}; average precision "
            "needs a score for each detection"
        )
    found.entries.append({**_object(entry, place, truth, found.path, image, category), "score": float(score)})


def _matched_images(data: Mapping[str, Any], truth: GroundTruth, found: Objects) -> dict[int, int | None]:
    """The ground truth's id of each image of the detections, by file name."""
    named: dict[int, str] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    for place, entry in _objects(data, "images", found.path):
        identity = _id(entry, "id", place, found.path)
        named[identity] = str(entry.get("file_name", ""))
        sizes[identity] = _size(entry)
    matched = _match(named, truth.names)
    if named and not any(identity is not None for identity in matched.values()):
        # The same images, seen from another folder.
        matched = _match(_last_parts(named), _last_parts(truth.names))
        if any(identity is not None for identity in matched.values()):
            found.notes.append("images are told by the last part of their file names, for the folders differ")
    if named and truth.names and not any(identity is not None for identity in matched.values()):
        raise CocoError(
            f"{found.path}: no image has the file name of one in {truth.path} ({_first(named)!r} here, "
            f"{_first(truth.names)!r} there); score detections of the same images"
        )
    for own, match in matched.items():
        size, other = sizes[own], None if match is None else truth.sizes[match]
        if size is not None and other is not None and size != other:
            raise CocoError(
                f"{found.path}: {named[own]!r} is {size[1]}x{size[0]}, in {truth.path} it is {other[1]}x{other[0]}; "
                "score detections of the same images"
            )
    missing = len(truth.names) - len({identity for identity in matched.values() if identity is not None})
    if missing:
        found.notes.append(f"{missing:,} images of {truth.path} are not in {found.path}; their objects count as missed")
    return matched


def _matched_categories(data: Mapping[str, Any], truth: GroundTruth, found: Objects) -> dict[int, int | None]:
    named = {
        _id(entry, "id", place, found.path): str(entry.get("name", ""))
        for place, entry in _objects(data, "categories", found.path)
    }
    matched = _match(named, truth.categories)
    if named and truth.categories and not any(identity is not None for identity in matched.values()):
        raise CocoError(
            f"{found.path}: no category has the name of one in {truth.path} ({_first(named)!r} here, "
            f"{_first(truth.categories)!r} there); give both the same names"
        )
    missing = sorted(set(truth.categories.values()) - set(named.values()))
    if missing:
        found.notes.append(f"categories that {found.path} does not have score 0: {_shown(missing)}")
    return matched


def _match(named: Mapping[int, str], others: Mapping[int, str]) -> dict[int, int | None]:
    """The other's id for each name; of equal names the one with the same id, and none where that does not help."""
    by_name: dict[str, list[int]] = {}
    for identity, name in others.items():
        by_name.setdefault(name, []).append(identity)
    matched: dict[int, int | None] = {}
    for identity, name in named.items():
        found = by_name.get(name, [])
        matched[identity] = identity if identity in found else found[0] if len(found) == 1 else None
    return matched


def _last_parts(named: Mapping[int, str]) -> dict[int, str]:
    return {identity: name.replace("\\", "/").rpartition("/")[2] for identity, name in named.items()}


def _object(
    entry: Mapping[str, Any], place: str, truth: GroundTruth, file: Path, image: Any, category: Any
) -> dict[str, Any]:
    """What annotations and detections have in common, checked."""
    for key, value, known in (("image_id", image, truth.names), ("category_id", category, truth.categories)):
        if isinstance(value, bool) or not isinstance(value, int) or value not in known:
            what = key.removesuffix("_id")
            raise CocoError(
                f"{file}: {place}: {key} is {value!r}, but {truth.path} has no {what} with that id; results must use "
                "the ids of the ground truth"
            )
    box, segmentation = entry.get("bbox") or None, entry.get("segmentation") or None
    if box is not None:
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite_number, box)) and min(box[2:]) >= 0):
            raise CocoError(f"{file}: {place}: bbox is not four numbers x, y, width, height")
        box = [float(value) for value in box]
    if segmentation is not None:
        size = truth.sizes[image]
        if size is None:
            raise CocoError(f"{truth.path}: the image with id {image} has no width and height, which masks need")
        try:
            segmentation = _run_lengths(segmentation, size)
        except ValueError as error:
            raise CocoError(f"{file}: {place}: segmentation: {error}; see 'tcl-annotate validate-coco'") from None
    if box is None and segmentation is None:
        raise CocoError(f"{file}: {place}: has neither bbox nor segmentation; add one of them")
    if box is None:
        box = [float(value) for value in coco_mask.toBbox(segmentation)]
    found = {"image_id": image, "category_id": category, "place": place, "bbox": box}
    return {**found, "segmentation": segmentation}


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Compressed run lengths of rings or run lengths.

    Raises:
        ValueError: it is neither, or damaged.
    """
    if isinstance(segmentation, dict):
        own = segmentation.get("size")
        if own != list(size):
            raise ValueError(f"its size is {own}, the image is {size[0]} high and {size[1]} wide")
        if "counts" not in segmentation:
            raise ValueError("counts is missing")
        return encode_counts(read_rle(segmentation, size).counts, size)
    rings = segmentation if isinstance(segmentation, list) else [None]
    for ring in rings:
        # pycocotools takes four numbers for a box.
        if not (isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and all(map(is_finite_number, ring))):
            raise ValueError("it is neither RLE nor a list of rings with at least three points")
        if is_far_outside(ring, size):
            raise ValueError("a ring is far outside its image")
    merged = coco_mask.merge(coco_mask.frPyObjects(rings, *size))
    return {"size": list(size), "counts": merged["counts"].decode("ascii")}


def _area(found: Mapping[str, Any]) -> float:
    if found["segmentation"] is not None:
        return float(coco_mask.area(found["segmentation"]))
    return found["bbox"][2] * found["bbox"][3]


def _load(file: Path) -> Any:
    try:
        data = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise CocoError(f"{file} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise CocoError(f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise CocoError(f"{file}: is not JSON ({error}); pass a COCO file or a list of results") from error
    if not isinstance(data, dict | list):
        raise CocoError(f"{file}: contains neither an object nor a list; pass a COCO file or a list of results")
    return data


def _objects(data: Mapping[str, Any], section: str, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(data.get(section), list):
        raise CocoError(f"{file}: has no list of {section}; pass a COCO file (or, for --dt, a list of results)")
    for index, entry in enumerate(data[section]):
        if not isinstance(entry, dict):
            raise CocoError(f"{file}: {section}[{index}]: is not an object (found {type(entry).__name__})")
        identity = entry.get("id")
        yield f"{section}[{index}]" + (f" (id {identity})" if isinstance(identity, int) else ""), entry


def _id(entry: Mapping[str, Any], key: str, place: str, file: Path) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CocoError(f"{file}: {place}: {key} is {'missing' if value is None else 'not a whole number'}")
    return value


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        return None
    return (height, width) if height * width <= MOST_PIXELS else None


def _first(named: Mapping[int, str]) -> str:
    return next(iter(named.values()))


def _shown(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
