"""What others make of our COCO files; needs the environment of ``make readers``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.readers.read_coco import READERS
from tests.readers.table import interpreter, read_with, write_file

pytestmark = pytest.mark.slow
needs_readers = pytest.mark.skipif(not interpreter().is_file(), reason="no readers are installed; run make readers")

DRAW_AS_PYCOCOTOOLS = ("pycocotools", "torchvision", "datumaro", "detectron2", "mmdetection")
REPOSITORY = Path(__file__).resolve().parents[2]


@needs_readers
@pytest.mark.parametrize("tolerance", ["exact", "default"])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_loses_or_refuses_anything_of_the_default(tmp_path: Path, reader: str, tolerance: str) -> None:
    reading = read_with(reader, write_file(tmp_path, "polygon", tolerance))
    if reading.missing is not None:
        pytest.skip(f"{reader} is not installed: {reading.missing}")
    assert reading.error is None
    assert reading.shapes >= reading.annotations
    assert reading.holes_filled == 0 and not reading.masks_lost
    if reader.startswith((*DRAW_AS_PYCOCOTOOLS, "Label Studio")) and tolerance == "exact":
        assert (reading.wrong, reading.doubled, reading.lost) == (0, 0, 0)
    elif reader.startswith(DRAW_AS_PYCOCOTOOLS):
        assert reading.doubled == 0


@needs_readers
@pytest.mark.parametrize("reader", ["sahi, loading", "detectron2, rules of polygons and crops"])
def test_bridged_holes_are_filled_by_those_who_repair_polygons(tmp_path: Path, reader: str) -> None:
    reading = read_with(reader, write_file(tmp_path, "keyhole", "exact"))
    if reading.missing is not None:
        pytest.skip(f"{reader} is not installed: {reading.missing}")
    assert reading.holes_filled == 6


@needs_readers
@pytest.mark.parametrize("reader", ["sahi, loading", "Label Studio, importer of its SDK"])
def test_run_lengths_are_lost_on_some(tmp_path: Path, reader: str) -> None:
    reading = read_with(reader, write_file(tmp_path, "rle", "exact"))
    if reading.missing is not None:
        pytest.skip(f"{reader} is not installed: {reading.missing}")
    assert reading.error is not None or reading.masks_lost


def test_the_documents_table_has_a_row_for_each_reader() -> None:
    page = (REPOSITORY / "docs" / "coco-readers.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| reader")]
    assert len(rows) == len(READERS)
    for row, reader in zip(rows, READERS, strict=True):
        default = row.split("|")[2]
        assert row.startswith(f"| {reader}") and "whole" in default and "**" not in default
