"""Stacks, channels and folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcl_core.segmentation.specks import without_specks
from tcl_core.vocabulary import Vocabulary
from tests.napari.coco_pixels import label_maps_of
from tests.napari.steps import brush, idle, segmented

if TYPE_CHECKING:
    from napari_tcl.widget import SegmentWidget


def test_stack_slice_by_slice(widget: SegmentWidget, image: NDArray[np.uint8], tmp_path: Path) -> None:
    stack = np.stack([image, np.roll(image, 40, axis=1), image[::-1]])
    results = segmented(widget, stack)
    assert results.draft.data.shape == stack.shape[:-1]
    shown = widget.viewer.dims.current_step[0]
    assert [bool(results.draft.data[index].any()) for index in range(3)] == [index == shown for index in range(3)]
    widget.segment(every_slice=True)
    idle(widget)
    assert all(results.draft.data[index].any() for index in range(3))
    widget.viewer.dims.set_current_step(0, 2)
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    assert not (results.draft.data[2] == 1).any()
    widget.polygons.geometry.value = "rle"
    widget.export(tmp_path / "labels.json")
    idle(widget)
    maps = label_maps_of(tmp_path / "labels.json")
    assert list(maps) == [f"image-{index:04d}.png" for index in range(3)]
    assert all(np.array_equal(found, results.draft.data[index]) for index, found in enumerate(maps.values()))


def test_16_bit_channels_and_scale(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    channels = np.moveaxis(image, -1, 0)[::-1].astype(np.uint16) * 16
    widget.image_form.axis.value = "0"
    widget.image_form.channels.value = "2,1,0"
    results = segmented(widget, channels, rgb=False, contrast_limits=(0, 255 * 16), scale=(1, 0.5, 0.5))
    loaded = widget.engine.loaded
    assert loaded is not None
    vocabulary = Vocabulary.from_options(["Cat=cat,dog", "Sky=sky"], background=False)
    expected = without_specks(loaded.segment_image(image, vocabulary), loaded.model, "auto").label_map
    assert np.array_equal(results.draft.data[0], expected)
    # The one label map is stretched over all three channels.
    assert tuple(results.draft.scale) == (3, 0.5, 0.5)


def test_folder_from_begin_to_end(
    widget: SegmentWidget, image: NDArray[np.uint8], tmp_path: Path, errors: list[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(image, 16 * number, axis=1)).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"no image")
    tab = widget.folder
    tab.folder.value = photos
    tab.run()
    idle(widget)
    assert tab.job is not None
    assert [state.state for state in tab.job.states()] == ["labeled", "labeled", "labeled", "failed"]
    assert widget.buttons.message.text().startswith("3 of 4 images are labeled, 1 failed")
    assert [tab.images.item(row).text()[0] for row in range(4)] == ["○", "○", "○", "✕"]

    tab.open("0.png")
    results = widget.current()[0]  # type: ignore[index]
    assert np.array_equal(results.draft.data, tab.job.load("0.png").label_map)
    brush(widget.viewer, results.draft, 1, 30, 40)
    brush(widget.viewer, results.draft, 2, 60, 40)
    corrected = results.draft.data.copy()
    results.draft.selected_label = 2
    widget.accept()
    assert widget.buttons.message.text().startswith(f"Sky: {np.count_nonzero(corrected == 2):,} pixels accepted")
    widget.segment()
    idle(widget)
    assert [layer.name for layer in widget.viewer.layers] == ["0.png", "0.png labels", "0.png accepted"]
    tab.save_and_next()
    assert [layer.name for layer in widget.viewer.layers] == ["1.png", "1.png labels", "1.png accepted"]
    assert [tab.images.item(row).text()[0] for row in range(4)] == ["●", "○", "○", "✕"]

    widget.polygons.geometry.value = "rle"
    tab.export(tmp_path / "labels.json")
    idle(widget)
    written = label_maps_of(tmp_path / "labels.json")["0.png"]
    assert (written[corrected == 2] == 2).all() and (written[30, 40:50] == 1).all()
    assert errors == []
    tab.run()
    idle(widget)
    assert [state.state for state in tab.job.states()][:2] == ["corrected", "labeled"]
