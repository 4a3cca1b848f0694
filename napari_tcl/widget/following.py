"""The chosen image follows what the user opens and selects in the viewer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari.layers import Image

from napari_tcl.metadata import METADATA_KEY

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["follow_selection"]


def follow_selection(owner: SegmentWidget) -> None:
    """Make an image layer that is opened or selected the one to segment; selected results choose their image.

    Args:
        owner: the widget with the drop-down list of images.
    """

    def choose() -> None:
        # napari selects a layer that is opened.
        layer, form = owner.viewer.layers.selection.active, owner.image_form
        if isinstance(layer, Image) and METADATA_KEY not in layer.metadata:
            image: Image | None = layer
        else:
            image = next((found.image for found in owner.results if layer in (found.draft, found.accepted)), None)
        if image is None or image is form.layer.value:
            return
        # It may be selected before others hear that it was added.
        form.refill()
        if image in form.layer.choices:
            form.layer.value = image

    owner.viewer.layers.selection.events.active.connect(owner.tasks.while_open(choose))
