"""The napari widget with the example method in a real window: ``python -m tests.contract.example_window``."""

from __future__ import annotations

import numpy as np

__all__ = ["run"]

_MODEL = "example-softmax:playground"
_LABELS = (("Sofa", "sofa,couch"), ("Sky", "sky"), ("House", "house"))


def run() -> None:
    """Segment, add a label, and compare with the library each time."""
    import napari

    from napari_tcl.sample_data import playground_stack
    from tests.napari.steps import dock, idle, segmented

    viewer = napari.Viewer(show=True)
    widget = dock(viewer)

    from tcl_core.models import load_model
    from tcl_core.segmentation.segmenter import Segmenter
    from tcl_core.vocabulary import Vocabulary

    widget.model.method.value, widget.model.model.value = _MODEL.split(":")
    widget.model.device.value = "cpu"
    widget.background.on.value = False
    widget.polygons.min_area.value = "0"
    image, segmenter = playground_stack()[0][0][1], Segmenter(load_model(_MODEL, device="cpu"))
    options: list[str] = []
    for name, prompts in _LABELS:
        widget.labels.add_row(name, prompts)
        options.append(f"{name}={prompts}")
        if len(options) == 1:
            continue
        if len(options) == 2:
            results = segmented(widget, image)
        else:
            widget.segment()
            idle(widget)
        expected = segmenter.segment_image(image, Vocabulary.from_options(options, background=False)).label_map
        found = np.asarray(results.draft.data)
        assert np.mean(found != expected) < 1e-3, np.mean(found != expected)
        assert len(np.unique(expected)) > 1
    assert widget.engine.loaded is not None and widget.engine.loaded.method.name == "example-softmax"
    viewer.close()
    print("segmented")


if __name__ == "__main__":
    run()
