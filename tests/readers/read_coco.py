"""What a library makes of a COCO file, printed as one JSON line.

It runs in the environment of the readers (``make readers``), which tcl-annotate need not be installed in:
``read_coco.py READER annotations.json IMAGES``. Reported are
the shapes that it loaded, each with image, category and mask: drawn as ``pycocotools`` draws where the reader keeps
polygons, and by the reader where it draws itself; or the ``error`` that it ended with.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Shape = tuple[int, int, np.ndarray]
"""Image's id, category's id, and mask bool ``[H, W]``."""


def _drawn(rings: list[list[float]], image: dict[str, Any]) -> np.ndarray:
    encoded = coco_mask.frPyObjects([list(map(float, ring)) for ring in rings], image["height"], image["width"])
    return coco_mask.decode(coco_mask.merge(encoded)) > 0


def pycocotools(file: Path, images: Path) -> Iterator[Shape]:
    from pycocotools.coco import COCO

    coco = COCO(str(file))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        yield annotation["image_id"], annotation["category_id"], coco.annToMask(annotation) > 0


def torchvision_v1(file: Path, images: Path) -> Iterator[Shape]:
    from torchvision.datasets import CocoDetection

    dataset = CocoDetection(str(images), str(file))
    for index in range(len(dataset)):
        for annotation in dataset[index][1]:
            yield annotation["image_id"], annotation["category_id"], dataset.coco.annToMask(annotation) > 0


def torchvision_v2(file: Path, images: Path) -> Iterator[Shape]:
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

    dataset = wrap_dataset_for_transforms_v2(CocoDetection(str(images), str(file)), target_keys="all")
    for index in range(len(dataset)):
        _, target = dataset[index]
        for label, mask in zip(target.get("labels", []), target.get("masks", []), strict=True):
            yield target["image_id"], int(label), mask.numpy() > 0


def supervision(file: Path, images: Path) -> Iterator[Shape]:
    import supervision as sv

    ids = {image["file_name"]: image["id"] for image in _data(file)["images"]}
    dataset = sv.DetectionDataset.from_coco(str(images), str(file), force_masks=True)
    for path, _, found in dataset:
        for label, mask in zip(found.class_id, found.mask, strict=True):
            yield ids[Path(path).name], int(label) + 1, np.asarray(mask) > 0


def datumaro(file: Path, images: Path) -> Iterator[Shape]:
    """Also what CVAT imports COCO with: each shape becomes one of CVAT's, in the group of its annotation."""
    import datumaro as dm

    known = {Path(image["file_name"]).stem: image for image in _data(file)["images"]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "annotations").mkdir()
        (Path(folder) / "annotations" / "instances_all.json").write_bytes(file.read_bytes())
        shutil.copytree(images, Path(folder) / "images" / "all")
        for item in dm.Dataset.import_from(folder, "coco_instances"):
            image = known[item.id]
            for shape in item.annotations:
                if isinstance(shape, dm.Polygon):
                    yield image["id"], shape.label + 1, _drawn([list(shape.points)], image)
                elif isinstance(shape, (dm.Mask, dm.RleMask)):
                    yield image["id"], shape.label + 1, np.asarray(shape.image) > 0


def sahi_load(file: Path, images: Path) -> Iterator[Shape]:
    yield from _sahi(file, images, None)


def sahi_slice(file: Path, images: Path) -> Iterator[Shape]:
    """Slices of 100 pixels without overlap, put together again."""
    yield from _sahi(file, images, 100)


def _sahi(file: Path, images: Path, side: int | None) -> Iterator[Shape]:
    from sahi.slicing import annotation_inside_slice, process_coco_annotations
    from sahi.utils.coco import Coco

    known = {image["file_name"]: image for image in _data(file)["images"]}
    for found in Coco.from_coco_dict_or_path(str(file), image_dir=str(images)).images:
        image = known[found.file_name]
        height, width = image["height"], image["width"]
        if side is None:
            for annotation in found.annotations:
                mask = (
                    _drawn(annotation.segmentation, image)
                    if annotation.segmentation
                    else np.zeros((height, width), bool)
                )
                yield image["id"], annotation.category_id, mask
            continue
        wholes = [np.zeros((height, width), dtype=bool) for _ in found.annotations]
        for y in range(0, height, side):
            for x in range(0, width, side):
                box = [x, y, min(x + side, width), min(y + side, height)]
                for whole, annotation in zip(wholes, found.annotations, strict=True):
                    if not annotation_inside_slice(annotation.json, box):
                        continue
                    for part in process_coco_annotations([annotation], box, 0.0):
                        rings = [[v + (x, y)[i % 2] for i, v in enumerate(ring)] for ring in part.segmentation if ring]
                        if rings:
                            whole |= _drawn(rings, image)
        for whole, annotation in zip(wholes, found.annotations, strict=True):
            yield image["id"], annotation.category_id, whole


def ultralytics(file: Path, images: Path) -> Iterator[Shape]:
    """Its converter's polygons, drawn as its training draws them."""
    import cv2
    from ultralytics.data.converter import convert_coco

    known = {Path(image["file_name"]).stem: image for image in _data(file)["images"]}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        (source / "all.json").write_bytes(file.read_bytes())
        convert_coco(str(source), str(Path(folder) / "out"), use_segments=True, cls91to80=False)
        for path in sorted((Path(folder) / "out").glob("labels/**/*.txt")):
            image = known[path.stem]
            for line in path.read_text().splitlines():
                label, *values = (float(value) for value in line.split())
                points = np.reshape(values, (-1, 2)) * (image["width"], image["height"])
                mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
                # ultralytics.data.utils.polygon2mask
                cv2.fillPoly(mask, [points.astype(np.int32)], color=1)
                yield image["id"], int(label) + 1, mask > 0


def label_studio(file: Path, images: Path) -> Iterator[Shape]:
    """The SDK's importer of COCO; its rectangles, one for each annotation's box, are left out here."""
    from label_studio_sdk.converter.imports.coco import convert_coco_to_ls

    data = _data(file)
    known = {image["file_name"]: image for image in data["images"]}
    names = {category["name"]: category["id"] for category in data["categories"]}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tasks.json"
        convert_coco_to_ls(str(file), str(out), image_root_url="http://localhost/")
        for task in json.loads(out.read_text()):
            image = known[task["data"]["image"].rsplit("/", 1)[-1]]
            for result in task["annotations"][0]["result"]:
                if result["type"] != "polygonlabels":
                    continue
                points = np.asarray(result["value"]["points"]) * (image["width"] / 100, image["height"] / 100)
                yield image["id"], names[result["value"]["polygonlabels"][0]], _drawn([points.ravel().tolist()], image)


def detectron2_rules(file: Path, images: Path) -> Iterator[Shape]:
    """Not the library, which PyPI does not hold, but its rules.

    Its loader keeps rings of at least three points and drops an annotation without any; masks that are polygons (its
    default) refuse an image with RLE among them; a random crop cuts every ring alone and drops one that GEOS calls
    invalid after a buffer of width zero, and keeps shells alone.
    """
    yield from _cropped(file, refuses_rle=True)


def mmdetection_rules(file: Path, images: Path) -> Iterator[Shape]:
    """Not the library, whose compiled part PyPI does not hold, but its rules.

    Its loader ignores an annotation with a ring of fewer than three points; RLE becomes a bitmap only where masks are
    not kept as polygons; crops of polygons are as detectron2's.
    """
    yield from _cropped(file, refuses_rle=True)


def _cropped(file: Path, refuses_rle: bool) -> Iterator[Shape]:
    import shapely

    data = _data(file)
    known = {image["id"]: image for image in data["images"]}
    for annotation in data["annotations"]:
        segmentation, image = annotation["segmentation"], known[annotation["image_id"]]
        if isinstance(segmentation, dict):
            if refuses_rle:
                raise TypeError("masks that are kept as polygons take no RLE")
            continue
        rings = [ring for ring in segmentation if len(ring) % 2 == 0 and len(ring) >= 6]
        kept = []
        frame = shapely.box(0, 0, image["width"], image["height"])
        for ring in rings:
            polygon = shapely.Polygon(np.reshape(ring, (-1, 2))).buffer(0.0)
            if polygon.is_valid:
                parts = shapely.get_parts(polygon.intersection(frame))
                kept += [shapely.get_coordinates(part.exterior)[:-1].ravel().tolist() for part in parts if part.area]
        if kept:
            yield image["id"], annotation["category_id"], _drawn(kept, image)


def _data(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


READERS: dict[str, tuple[Callable[[Path, Path], Iterator[Shape]], str]] = {
    "pycocotools": (pycocotools, "pycocotools"),
    "torchvision, `CocoDetection`": (torchvision_v1, "torchvision"),
    "torchvision, transforms v2": (torchvision_v2, "torchvision"),
    "supervision": (supervision, "supervision"),
    "datumaro (imports for CVAT)": (datumaro, "datumaro"),
    "sahi, loading": (sahi_load, "sahi"),
    "sahi, slicing": (sahi_slice, "sahi"),
    "ultralytics, `convert_coco`": (ultralytics, "ultralytics"),
    "Label Studio, importer of its SDK": (label_studio, "label-studio-sdk"),
    "detectron2, rules of polygons and crops": (detectron2_rules, "shapely"),
    "mmdetection, rules of polygons and crops": (mmdetection_rules, "shapely"),
}


def main() -> None:
    """Read a file with the reader of a name, and print what came of it."""
    name, file, images = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    read, package = READERS[name]
    answer: dict[str, Any] = {"version": version(package)}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            shapes = list(read(file, images))
        answer["shapes"] = [
            [int(image), int(category), coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()]
            for image, category, mask in shapes
        ]
    except ImportError as error:
        answer["missing"] = str(error)
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
