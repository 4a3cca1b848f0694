"""Groups without labels: a model makes them, the annotator names them, and the layer is saved under these names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.napari.steps import register_plugin, wait_until

if TYPE_CHECKING:
    from napari import Viewer


def groupvit_file(folder: Path) -> Path:
    """A small GroupViT with random weights, as `models import` writes it."""
    pytest.importorskip("transformers", reason="the extra groupvit is not installed")
    from tcl_core.methods.groupvit import GroupViT, GroupViTConfig
    from tcl_core.models.checkpoints import import_checkpoint

    sizes = {"width": 64, "heads": 1, "depths": (1, 1, 1), "group_tokens": (4, 3, 0), "output_groups": (4, 3)}
    sizes |= {"image_size": 32, "text_width": 64, "text_heads": 1, "text_layers": 1, "embed_dim": 8, "hidden_dim": 16}
    torch.manual_seed(0)
    tensors = GroupViT(GroupViTConfig(**sizes)).encoders.state_dict()  # type: ignore[arg-type]
    # Groups of transformers' small random weights are all alike.
    grown = {name: x * 15 if "assign" in name and x.is_floating_point() else x for name, x in tensors.items()}
    torch.save(grown, folder / "hub.bin")
    return import_checkpoint(folder / "hub.bin", out=folder / "groups.safetensors")


def test_groups_are_named_and_saved(
    viewer: Viewer, image: NDArray[np.uint8], tiny_model_path: Path, tmp_path: Path
) -> None:
    from napari.layers import Labels

    from napari_tcl.groups import groups_of

    register_plugin()
    widget: Any
    _, widget = viewer.window.add_plugin_dock_widget("tcl-annotate", "Name groups")
    widget.start()
    assert "Select an image layer" in widget.state.text()
    viewer.add_image(np.stack([image] * 2), name="stack")
    widget.start()
    assert "'stack' is a stack" in widget.state.text()
    viewer.layers.clear()
    photo = viewer.add_image(image, name="photo", rotate=30, scale=(2, 3), translate=(5, 7))
    widget.model.setText(str(tiny_model_path))
    widget.start()
    wait_until(widget.find_button.isEnabled, "the work ends")
    assert "makes no groups" in widget.state.text() and len(viewer.layers) == 1
    model = groupvit_file(tmp_path)
    widget.model.setText(str(model))
    widget.start()
    wait_until(lambda: len(viewer.layers) == 2, f"groups are there; the widget says: {widget.state.text()}")
    layer = viewer.layers[-1]
    assert isinstance(layer, Labels) and layer.name == "Groups of photo"
    assert np.allclose(layer.data_to_world((3, 4)), photo.data_to_world((3, 4)))
    expected = groups_of(str(model), image)
    assert np.array_equal(np.asarray(layer.data), expected) and expected.min() == 1
    assert widget.table.rowCount() == expected.max()
    widget.table.item(0, 2).setText("Wall")
    assert layer.features["label"].tolist()[0] == "Wall"
    widget.table.setCurrentCell(widget.table.rowCount() - 1, 0)
    assert layer.selected_label == expected.max()
    out = tmp_path / "groups.json"
    layer.save(str(out), plugin="tcl-annotate")
    coco = json.loads(out.read_text())
    assert coco["categories"][0]["name"] == "Wall" and len(coco["categories"]) == expected.max()
    assert sum(annotation["area"] for annotation in coco["annotations"]) == expected.size
